#!/bin/sh
# Installs the agent on the node as a service of its systemd, or takes it off. Run again, it changes what differs and restarts only
# then; a restart of the agent ends no pod.
set -eu

# Other places than a pod's: for tests.
CHART=${CHART:-/etc/nodeagent-chart} TOKEN=${TOKEN:-/etc/nodeagent-token} HOST=${HOST:-/host}
AGENT=${AGENT:-/usr/bin/nodeagent} DONE=${DONE:-/tmp/done}
SERVICE=$HOST/etc/systemd/system/nodeagent.service
# There while the agent runs in a kubelet's place.
REPLACED=$HOST/etc/nodeagent/kubelet-replaced
# There if something was changed; a file, since half of it happens in subshells.
CHANGED=$(mktemp -u)

say() { echo "nodeagent: $*"; }
fail() { say "$*" >&2; exit 1; }
# On the node: its mounts, its systemd.
on_node() { nsenter --target 1 --mount --uts --ipc --net -- "$@"; }

# Until it is told to stop. A shell that is PID 1 hears TERM only if it has a trap, and acts on it only while it waits.
rest() {
    sleep infinity &
    wait
}
trap 'kill "${!:-}" 2> /dev/null || true; exit 0' TERM INT

# put TARGET MODE: standard input becomes that file, whole or not at all; the same text changes nothing.
put() {
    mkdir -p "$(dirname "$1")"
    cat > "$1.new"
    chmod "$2" "$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; touch "$CHANGED"; fi
}

# What the node's kubelet uses, unless the values say otherwise.
api_server() {
    if [ -n "$API_SERVER" ]; then echo "$API_SERVER"; return; fi
    for file in "$HOST/etc/kubernetes/kubelet.conf" "$HOST/var/lib/kubelet/kubeconfig"; do
        if [ -e "$file" ]; then sed -n 's/^ *server: *//p' "$file" | head -n 1; return; fi
    done
    case ${KUBERNETES_SERVICE_HOST:?} in
        *:*) echo "https://[$KUBERNETES_SERVICE_HOST]:$KUBERNETES_SERVICE_PORT" ;;
        *) echo "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT" ;;
    esac
}

kubeconfig() {
    cat << YAML
apiVersion: v1
kind: Config
current-context: nodeagent
clusters: [{name: nodeagent, cluster: {server: "$(api_server)", certificate-authority: /etc/nodeagent/pki/cluster-ca.crt}}]
users: [{name: bootstrap, user: {token: "$(cat "$TOKEN/token-id").$(cat "$TOKEN/token-secret")"}}]
contexts: [{name: nodeagent, context: {cluster: nodeagent, user: bootstrap}}]
YAML
}

client_ca() {
    for file in "$CHART/client-ca.crt" "$HOST/etc/kubernetes/pki/ca.crt" "$CHART/cluster-ca.crt"; do
        if [ -e "$file" ]; then cat "$file"; return; fi
    done
}

arguments() {
    if [ "$MODE" = beside ]; then echo "--node-name $NODE_NAME-nodeagent"; else echo "--node-name $NODE_NAME"; fi
    echo "--kubeconfig /etc/nodeagent/kubeconfig"
    if [ -d "$TOKEN" ]; then echo "--bootstrap-kubeconfig /etc/nodeagent/bootstrap-kubeconfig"; fi
}

# The chart's words, and the cluster's name servers as the node's kubelet knows them, where the values name none.
config() {
    cat "$CHART/config.yaml"
    for key in clusterDNS clusterDomain; do
        if grep -q "^$key:" "$CHART/config.yaml" || [ ! -e "$HOST/var/lib/kubelet/config.yaml" ]; then continue; fi
        # The key's line, and the items of a list below it.
        sed -n "/^$key:/,/^[^ -]/{/^$key:/p;/^ *- /p}" "$HOST/var/lib/kubelet/config.yaml"
    done
}

install_files() {
    put "$HOST$BINARY" 0755 < "$AGENT"
    config | put "$HOST/etc/nodeagent/config.yaml" 0600
    put "$HOST/etc/nodeagent/pki/cluster-ca.crt" 0644 < "$CHART"/cluster-ca.crt
    client_ca | put "$HOST/etc/nodeagent/pki/client-ca.crt" 0644
    if [ -d "$TOKEN" ]; then kubeconfig | put "$HOST/etc/nodeagent/bootstrap-kubeconfig" 0600; fi
    mkdir -p "$HOST$MANIFESTS" && chmod 0700 "$HOST$MANIFESTS"
    sed -e "s|@BINARY@|$BINARY|" -e "s|@ARGUMENTS@|$(arguments | tr '\n' ' ')|" "$CHART/nodeagent.service" | put "$SERVICE" 0644
}

# The kubelet's containers end with it: two runtimes must not both run a pod. This very container is one of them, so the node's
# systemd does it.
replace_kubelet() {
    on_node systemctl is-enabled --quiet kubelet 2> /dev/null || return 0
    say "the kubelet of $NODE_NAME makes way"
    : > "$REPLACED"
    on_node systemd-run --unit=nodeagent-takeover --collect --quiet /bin/sh -c '
        systemctl disable --now kubelet
        if command -v crictl > /dev/null; then crictl rmp --all --force; fi
        systemctl enable --now nodeagent'
    rest
}

# The way back, by the node's systemd as well: with the agent's pods this container ends. The kubelet starts it again, and it finds the
# rest of its work.
return_kubelet() {
    say "the kubelet of $NODE_NAME comes back"
    on_node systemd-run --unit=nodeagent-return --collect --quiet /bin/sh -c '
        systemctl disable --now nodeagent
        timeout --signal=TERM --kill-after=600 5 "$0" --config /etc/nodeagent/config.yaml --drain
        rm -f /etc/nodeagent/kubelet-replaced
        systemctl enable --now kubelet' "$BINARY"
    rest
}

remove() {
    if [ -e "$REPLACED" ]; then return_kubelet; fi
    if [ -e "$SERVICE" ]; then
        on_node systemctl disable --now nodeagent || true
        # Takes the pods over and is told to stop at once: with --drain it ends them.
        on_node timeout --signal=TERM --kill-after=600 5 "$BINARY" --config /etc/nodeagent/config.yaml --drain || true
        rm -f "$SERVICE" "$HOST$BINARY" "$HOST/etc/systemd/logind.conf.d/99-nodeagent.conf"
        rm -rf "$HOST/etc/nodeagent/pki" "$HOST/etc/nodeagent/bootstrap-kubeconfig" "$HOST/etc/nodeagent/kubeconfig"
        on_node systemctl daemon-reload
    fi
    say "nodeagent is not on $NODE_NAME any more; /var/lib/nodeagent stays, with the data of claims"
}

case $MODE in
    beside | instead)
        on_node test -d /run/systemd/system || fail "this node has no systemd"
        install_files
        on_node systemctl daemon-reload
        if [ "$MODE" = instead ]; then replace_kubelet; fi
        on_node systemctl enable --quiet nodeagent
        if [ -e "$CHANGED" ]; then on_node systemctl restart nodeagent; else on_node systemctl start nodeagent; fi
        say "nodeagent runs on $NODE_NAME"
        ;;
    remove) remove ;;
    *) fail "unknown mode: $MODE" ;;
esac
touch "$DONE"
rest
