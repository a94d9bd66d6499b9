#!/bin/sh
# Stands in for Azure/kubelogin: the same flags, a token that only this sandbox knows.
# Server id and credential are filled in when the control plane starts.
[ "$1" = get-token ] || { echo "kubelogin: unknown command '$1'; the sandbox has only get-token" >&2; exit 1; }
login=devicecode server=
while [ $# -gt 0 ]; do
  case $1 in
    --login | -l) login=$2; shift ;;
    --login=*) login=${1#*=} ;;
    --server-id) server=$2; shift ;;
    --server-id=*) server=${1#*=} ;;
  esac
  shift
done
[ "$server" = @SERVER_ID@ ] || { echo "kubelogin: --server-id '$server' is not the AKS server application" >&2; exit 1; }
case $login in
  azurecli | workloadidentity | spn | msi) exec cat @CREDENTIAL@ ;;
  *)
    echo "kubelogin: --login $login waits for a person at a browser and would hang here;" \
      "use azurecli, workloadidentity, spn or msi" >&2
    exit 1
    ;;
esac
