"""From a pull request to a deployed stack: the steps of the workflows, and of `make rehearse` on this machine."""
