"""Where a team's state and secrets live in Azure: the commands, each with its reason. Nothing is run."""

from __future__ import annotations

#: Built-in roles by name: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Names of your choice. Storage accounts and key vaults are named once in all of Azure.",
        (
            "export LOCATION=eastus GROUP=rg-aks-vllm-state",
            "export ACCOUNT=aksvllmstate$RANDOM VAULT=kv-aks-vllm-$RANDOM",
        ),
    ),
    (
        "A resource group apart from the stacks': destroying a stack must not take its own state along.",
        ('az group create --name "$GROUP" --location "$LOCATION"',),
    ),
    (
        "The state's storage: no public blobs, no account keys (Entra ID alone signs in), TLS 1.2.",
        (
            'az storage account create --name "$ACCOUNT" --resource-group "$GROUP" --location "$LOCATION" \\',
            "  --sku Standard_ZRS --allow-blob-public-access false --allow-shared-key-access false \\",
            "  --min-tls-version TLS1_2",
        ),
    ),
    (
        "Versions, and deleted blobs for 30 days: a broken state can be brought back (docs/disaster-recovery.md).",
        (
            'az storage account blob-service-properties update --account-name "$ACCOUNT" --resource-group "$GROUP" \\',
            "  --enable-versioning true --enable-delete-retention true --delete-retention-days 30",
            'az storage container create --name state --account-name "$ACCOUNT" --auth-mode login',
        ),
    ),
    (
        "The vault with the key that encrypts secrets in the state. Purge protection: without the key they are lost.",
        (
            'az keyvault create --name "$VAULT" --resource-group "$GROUP" --location "$LOCATION" \\',
            "  --enable-rbac-authorization true --enable-purge-protection true",
        ),
    ),
    (
        "You, to make the key and the first stack. Roles take some minutes to apply.",
        (
            "export ME=$(az ad signed-in-user show --query id --output tsv)",
            'export SCOPE=$(az group show --name "$GROUP" --query id --output tsv)',
            'az role assignment create --assignee "$ME" --role "Storage Blob Data Contributor" --scope "$SCOPE"',
            'az role assignment create --assignee "$ME" --role "Key Vault Crypto Officer" --scope "$SCOPE"',
            'az keyvault key create --vault-name "$VAULT" --name pulumi --kty RSA --size 3072',
        ),
    ),
    (
        "The pipeline's identities, one that reads for previews and one that deploys; GitHub proves which job it is "
        "(OIDC), so there is no password to store or to leak. Put OWNER/REPO in.",
        (
            "for WHO in preview deploy; do",
            '  az identity create --name "id-aks-vllm-$WHO" --resource-group "$GROUP"',
            "done",
            "az identity federated-credential create --name github --identity-name id-aks-vllm-deploy \\",
            '  --resource-group "$GROUP" --issuer https://token.actions.githubusercontent.com \\',
            '  --subject "repo:OWNER/REPO:environment:{stack}" --audiences api://AzureADTokenExchange',
            "az identity federated-credential create --name github --identity-name id-aks-vllm-preview \\",
            '  --resource-group "$GROUP" --issuer https://token.actions.githubusercontent.com \\',
            '  --subject "repo:OWNER/REPO:environment:{stack}-preview" --audiences api://AzureADTokenExchange',
        ),
    ),
    (
        "What they may do. The preview reads Azure and the state and decrypts with the key; it can write neither. "
        "(The CLI asks for a lock before a preview only with --refresh.)",
        (
            "export SUBSCRIPTION=/subscriptions/$(az account show --query id --output tsv)",
            "identity() {",
            '  az identity show --name "id-aks-vllm-$1" --resource-group "$GROUP" --query principalId --output tsv',
            "}",
            'grant() { az role assignment create --assignee "$(identity "$1")" --role "$2" --scope "$3"; }',
            'grant preview "Reader" "$SUBSCRIPTION"',
            'grant preview "Storage Blob Data Reader" "$SCOPE"',
            'grant preview "Key Vault Crypto User" "$SCOPE"',
            'grant deploy "Contributor" "$SUBSCRIPTION"',
            'grant deploy "Role Based Access Control Administrator" "$SUBSCRIPTION"',
            'grant deploy "Storage Blob Data Contributor" "$SCOPE"',
            'grant deploy "Key Vault Crypto User" "$SCOPE"',
        ),
    ),
    (
        "The stack, in that storage and with that key. This writes its key material into stacks/Pulumi.{stack}.yaml: "
        "commit it.",
        (
            'pulumi login "azblob://state?storage_account=$ACCOUNT"',
            'pulumi stack init {stack} --secrets-provider "azurekeyvault://$VAULT.vault.azure.net/keys/pulumi"',
        ),
    ),
    (
        "What the workflows read. These are names and ids, no secrets: repository variables.",
        (
            'gh variable set PULUMI_BACKEND_URL --body "azblob://state?storage_account=$ACCOUNT"',
            'gh variable set AZURE_TENANT_ID --body "$(az account show --query tenantId --output tsv)"',
            'gh variable set AZURE_SUBSCRIPTION_ID --body "$(az account show --query id --output tsv)"',
            "client() {",
            '  az identity show --name "id-aks-vllm-$1" --resource-group "$GROUP" --query clientId --output tsv',
            "}",
            'gh variable set AZURE_CLIENT_ID --env {stack} --body "$(client deploy)"',
            'gh variable set AZURE_CLIENT_ID --env {stack}-preview --body "$(client preview)"',
        ),
    ),
)


def text(stack: str) -> str:
    """A shell script to read, change and paste, step by step."""
    lines = [
        f"# State and secrets for stack {stack}: azblob:// and azurekeyvault://. Nothing here has been run for you.",
        "# You need the Azure CLI signed in as an owner of the subscription, the Pulumi CLI and the GitHub CLI.",
    ]
    for number, (why, commands) in enumerate(STEPS, 1):
        lines += ["", f"# {number}. {why}", *commands]
    return "\n".join(lines).replace("{stack}", stack)
