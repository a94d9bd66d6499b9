"""Built-in roles of Azure that the stack grants, by id, the same in every tenant.

https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
"""

CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"
NETWORK_CONTRIBUTOR = "4d97b98b-1d4f-4787-a291-c67834d212e7"
MANAGED_IDENTITY_OPERATOR = "f1a07417-d97a-45cb-824c-7a7467783830"
RBAC_CLUSTER_ADMIN = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"  # Azure Kubernetes Service RBAC Cluster Admin
ACR_PULL = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
#: Of registries whose permissions go by repository, which ignore AcrPull.
#: https://learn.microsoft.com/azure/container-registry/container-registry-rbac-built-in-roles-directory-reference
REPOSITORY_READER = "b93aa761-3e63-49ed-ac28-beffa264f7ac"
BLOB_DATA_READER = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"  # Storage Blob Data Reader
BLOB_DATA_CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"  # Storage Blob Data Contributor
#: Key Vault Secrets User, of certificates too: what goes with their private keys is read as a secret.
VAULT_SECRETS_USER = "4633458b-17de-408a-b874-0445c86b69e6"
MONITORING_DATA_READER = "b0d8363b-8ddd-447d-831f-62ca05bff136"
