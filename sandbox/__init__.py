"""The sandbox: the whole stack on one machine, with a simulated Azure and a real Kubernetes control plane."""
