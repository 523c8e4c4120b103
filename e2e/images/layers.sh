# Root file systems as layers: each step works on an overlay, and what it changed is a layer. Sourced by build.
# shellcheck shell=bash disable=SC2154

# layer NAME BELOW... -- COMMAND...: runs COMMAND with $root set to a tree of the layers BELOW (uppermost first); its changes are NAME.
layer() {
    local name=$1 below=() lower
    shift
    while [[ $1 != -- ]]; do
        below+=("$work/layers/$1")
        shift
    done
    shift
    mkdir -p "$work/layers/$name" "$work/empty" "$work/overlay" "$work/merged"
    lower=$(IFS=:; echo "${below[*]:-$work/empty}")
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$work/layers/$name,workdir=$work/overlay" "$work/merged"
    root=$work/merged "$@"
    umount "$work/merged"
    rm -rf "$work/overlay"
}

# blob LAYOUT FILE: moves a file to the layout's blobs and prints its digest and size.
blob() {
    local digest size
    digest=$(sha256sum "$2" | cut -d' ' -f1)
    size=$(stat -c %s "$2")
    mv "$2" "$work/$1/blobs/sha256/$digest"
    echo "$digest $size"
}

# packed LAYER: the layer as tar on standard output, with overlayfs's whiteouts as the image specification writes them.
packed() {
    local copy=$work/packed file
    cp -a "$work/layers/$1" "$copy"
    while IFS= read -r file; do
        rm "$file"
        touch "${file%/*}/.wh.${file##*/}"
    done < <(find "$copy" -type c -exec stat -c '%t:%T %n' {} + | sed -n 's/^0:0 //p')
    tar --create --sort=name --mtime=@1700000000 --numeric-owner --xattrs --xattrs-exclude='trusted.*' -C "$copy" .
    rm -rf "$copy"
}

# image LAYOUT ARCHITECTURE CONFIG LAYER...: adds to an OCI layout the image of these layers, lowest first. CONFIG is its `config` object.
image() {
    local layout=$1 architecture=$2 config=$3 name digest size diffs=() layers='[]'
    shift 3
    mkdir -p "$work/$layout/blobs/sha256"
    for name in "$@"; do
        packed "$name" > "$work/layer.tar"
        diffs+=("sha256:$(sha256sum "$work/layer.tar" | cut -d' ' -f1)")
        gzip --fast --no-name < "$work/layer.tar" > "$work/layer.gz"
        read -r digest size < <(blob "$layout" "$work/layer.gz")
        layers=$(jq -c --arg d "$digest" --argjson s "$size" \
            '. + [{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest: ("sha256:" + $d), size: $s}]' <<< "$layers")
    done
    rm -f "$work/layer.tar"
    jq -cn --arg a "$architecture" --argjson c "$config" '{created: "2023-11-14T22:13:20Z", architecture: $a, os: "linux",
        config: $c, rootfs: {type: "layers", diff_ids: $ARGS.positional}}' --args "${diffs[@]}" > "$work/config.json"
    read -r digest size < <(blob "$layout" "$work/config.json")
    jq -cn --arg d "$digest" --argjson s "$size" --argjson l "$layers" '{schemaVersion: 2,
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: ("sha256:" + $d), size: $s}, layers: $l}' > "$work/manifest.json"
    read -r digest size < <(blob "$layout" "$work/manifest.json")
    manifests=$(jq -c --arg d "$digest" --argjson s "$size" --arg a "$architecture" '. + [{digest: ("sha256:" + $d), size: $s,
        mediaType: "application/vnd.oci.image.manifest.v1+json", platform: {architecture: $a, os: "linux"}}]' <<< "${manifests:-[]}")
}

# index LAYOUT [nested]: closes the layout over the images added since the last call; nested: behind one index of several platforms.
index() {
    local digest size
    if [[ ${2:-} == nested ]]; then
        jq -cn --argjson m "$manifests" \
            '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: $m}' > "$work/index.json"
        read -r digest size < <(blob "$1" "$work/index.json")
        manifests=$(jq -cn --arg d "$digest" --argjson s "$size" \
            '[{digest: ("sha256:" + $d), size: $s, mediaType: "application/vnd.oci.image.index.v1+json"}]')
    fi
    jq -cn --argjson m "$manifests" '{schemaVersion: 2, manifests: $m}' > "$work/$1/index.json"
    echo '{"imageLayoutVersion": "1.0.0"}' > "$work/$1/oci-layout"
    manifests='[]'
}

# install PACKAGE...: Debian packages and what they need into $root, no service started.
install() {
    local debs=$work/debs
    rm -rf "$debs"
    mkdir -p "$debs/partial"
    apt-get install --yes --quiet --quiet --no-install-recommends --download-only \
        -o Dir::State::status="$root/var/lib/dpkg/status" -o Dir::Cache::archives="$debs" -o Debug::NoLocking=true "$@" > "$work/apt.log" 2>&1 \
        || { cat "$work/apt.log"; return 1; }
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    DEBIAN_FRONTEND=noninteractive dpkg --root="$root" --install --force-confold "$debs"/*.deb > "$work/dpkg.log" 2>&1 \
        || { cat "$work/dpkg.log"; return 1; }
    rm -f "$root/usr/sbin/policy-rc.d"
    slim
}

# As the -slim images: no documents, no translations, no package lists.
slim() {
    find "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root/var/cache/apt" "$root/var/lib/apt/lists" \
        "$root/var/log" -mindepth 1 -not -type d -not -name copyright -delete 2> /dev/null || true
}
