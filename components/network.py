"""The cluster's network: one subnet for the nodes, with a NAT gateway for what they fetch from the internet."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_azure_native import network, resources

from planning.cluster import ClusterPlan
from planning.names import Names

SUBNET = "nodes"


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """Ranges (`plan`), physical names, and the group that all of it lies in."""

    plan: ClusterPlan
    names: Names
    resource_group: resources.ResourceGroup


class Network(pulumi.ComponentResource):
    """A virtual network whose nodes have no public address of their own."""

    virtual_network: network.VirtualNetwork
    node_subnet_id: pulumi.Output[str]
    egress_ip: pulumi.Output[str]  # the address that the internet sees

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("aks-vllm:index:Network", name, None, opts)
        plan, names, group = args.plan, args.names, args.resource_group.name
        child = pulumi.ResourceOptions(parent=self)

        public_ip = network.PublicIPAddress(
            f"{name}-public-ip",
            public_ip_address_name=names.public_ip,
            resource_group_name=group,
            location=plan.location,
            tags=plan.tags,
            sku=network.PublicIPAddressSkuArgs(name="Standard"),
            public_ip_allocation_method="Static",
            opts=child,
        )
        nat_gateway = network.NatGateway(
            f"{name}-nat-gateway",
            nat_gateway_name=names.nat_gateway,
            resource_group_name=group,
            location=plan.location,
            tags=plan.tags,
            sku=network.NatGatewaySkuArgs(name="Standard"),
            idle_timeout_in_minutes=plan.network.nat_idle_minutes,
            public_ip_addresses=[network.SubResourceArgs(id=public_ip.id)],
            opts=child,
        )
        # Without rules of its own: Azure's defaults let the network and its load balancers in, and nobody else. Rules
        # for a public endpoint are added by AKS itself, on the node resource group's own group.
        security_group = network.NetworkSecurityGroup(
            f"{name}-security-group",
            network_security_group_name=names.network_security_group,
            resource_group_name=group,
            location=plan.location,
            tags=plan.tags,
            opts=child,
        )
        self.virtual_network = network.VirtualNetwork(
            f"{name}-virtual-network",
            virtual_network_name=names.virtual_network,
            resource_group_name=group,
            location=plan.location,
            tags=plan.tags,
            address_space=network.AddressSpaceArgs(address_prefixes=[plan.network.vnet_cidr]),
            # Inline: a PUT of a network without its subnets would delete them,
            # and as resources of their own they come one after the other.
            subnets=[
                network.SubnetArgs(
                    name=SUBNET,
                    address_prefix=plan.network.node_subnet_cidr,
                    nat_gateway=network.SubResourceArgs(id=nat_gateway.id),
                    network_security_group=network.NetworkSecurityGroupArgs(id=security_group.id),
                    # New networks have no other way out than the NAT gateway.
                    default_outbound_access=False,
                )
            ],
            opts=pulumi.ResourceOptions(parent=self, protect=plan.protect),
        )
        self.node_subnet_id = pulumi.Output.concat(self.virtual_network.id, f"/subnets/{SUBNET}")
        self.egress_ip = public_ip.ip_address.apply(lambda address: address or "")
        self.register_outputs({"nodeSubnetId": self.node_subnet_id})
