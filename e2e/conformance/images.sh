# The images that Kubernetes' node tests name, from what build has compiled and the images of the other tests. Sourced by build.
# shellcheck shell=bash disable=SC2154

path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin


busybox_files() {
	mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,var/tmp}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	cp "$out/busybox" "$root/bin/busybox"
	local applet
	for applet in $("$out/busybox" --list); do
		[[ $applet == busybox ]] || ln "$root/bin/busybox" "$root/bin/$applet"
	done
	ln -s ../../bin/env "$root/usr/bin/env"
	printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/home:/bin/false > "$root/etc/passwd"
	printf '%s\n' root:x:0: nobody:x:65534: > "$root/etc/group"
}

agnhost_files() {
	cp "$out/agnhost" "$root/agnhost"
	ln -s agnhost "$root/agnhost-2"
	mkdir "$root/uploads"
	local source
	source=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost
	command install --mode=0644 "$source/porter/localhost.crt" "$source/porter/localhost.key" "$root"
	# Hooks fetch a page with it, and look at its status alone.
	printf '#!/bin/sh\nfor url; do :; done\nexec wget -q -O - --no-check-certificate "$url"\n' > "$root/bin/curl"
	# Of bash they use what every shell has.
	printf '#!/bin/sh\nexec sh "$@"\n' > "$root/bin/bash"
	chmod 755 "$root/bin/curl" "$root/bin/bash"
	echo user-defined-in-image:x:1000:1000::/home:/bin/sh >> "$root/etc/passwd"
	printf '%s\n' user-defined-in-image:x:1000: group-defined-in-image:x:50000:user-defined-in-image >> "$root/etc/group"
	# Its fake registry holds one image.
	local store=$root/var/registry/pause from=$work/pause
	mkdir -p "$store/manifests" "$store/blobs"
	put() { # KIND FILE
		local digest; digest=$(sha256sum "$2" | cut -d' ' -f1)
		mkdir -p "$store/$1/sha256/${digest:0:2}/$digest"
		cp "$2" "$store/$1/sha256/${digest:0:2}/$digest/data"
		echo "sha256:$digest"
	}
	local manifest digest
	digest=$(jq -r '.manifests[0].digest' "$from/index.json")
	manifest=$from/blobs/sha256/${digest#sha256:}
	for digest in $(jq -r '.config.digest, .layers[].digest' "$manifest"); do
		put blobs "$from/blobs/sha256/${digest#sha256:}" > /dev/null
	done
	put manifests "$manifest" > /dev/null
	jq -c '. + {mediaType: "application/vnd.oci.image.index.v1+json"}' "$from/index.json" > "$work/list.json"
	put manifests "$work/list.json" > "$store/manifests/testing"
}

nonewprivs_files() {
	mkdir -p "$root/usr/local/bin"
	cp "$out/nonewprivs" "$root/usr/local/bin/nnp"
	chmod u+s,g+s "$root/usr/local/bin/nnp"
}

pause_files() {
	cp "$out/pause" "$root/pause"
}

config() { # USER ENTRYPOINT CMD
	jq -cn --arg p "PATH=$path" --arg u "$1" --argjson e "$2" --argjson c "$3" '{Env: [$p], User: $u, Entrypoint: $e, Cmd: $c}'
}

built() { # NAME CONFIG LAYER...
	image "$1" amd64 "$2" "${@:3}"
	index "$1"
}

store_images() {
	layer busybox -- busybox_files
	layer pause -- pause_files
	built pause "$(config 65535:65535 '["/pause"]' null)" pause
	layer agnhost busybox -- agnhost_files
	layer nonewprivs busybox -- nonewprivs_files
	built busybox "$(config '' null '["sh"]')" busybox
	built agnhost "$(config '' '["/agnhost"]' '["pause"]')" busybox agnhost
	built nonroot "$(config 1234 null '["sh"]')" busybox
	built nonewprivs "$(config '' null '["nnp"]')" busybox nonewprivs

	# A registry of its own, in a network of its own, over a copy of the other tests' images.
	rm -rf "$out/registry"
	cp -al "$here/../../target/e2e/registry" "$work/storage" 2> /dev/null || cp -a "$here/../../target/e2e/registry" "$work/storage"
	rm -f "$work/storage/stamp"
	cat > "$work/registry.yml" << YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/storage}}
http: {addr: 127.0.0.1:5000}
YAML
	unshare --net -- sh -c "ip link set lo up && exec docker-registry serve $work/registry.yml" > "$work/registry.log" 2>&1 &
	registry=$!
	inside() { nsenter --net="/proc/$registry/ns/net" -- "$@"; }
	until inside curl -sf http://127.0.0.1:5000/v2/ > /dev/null; do
		kill -0 "$registry" || { cat "$work/registry.log"; return 1; }
		sleep 0.1
	done
	local name tag
	push() { # FROM NAME TAG
		inside skopeo copy --quiet --insecure-policy --src-tls-verify=false --dest-tls-verify=false "$1" "docker://127.0.0.1:5000/$2:$3"
	}
	"$out/e2e.test" --list-images | sed -n 's|^registry.k8s.io/||p' | while IFS=: read -r name tag; do
		case $name in
			pause | */busybox | */agnhost | */nonroot | */nonewprivs) push "oci:$work/${name##*/}" "$name" "$tag" ;;
			*/nginx) push docker://127.0.0.1:5000/library/nginx:latest "$name" "$tag" ;;
			*/glibc-dns-testing) push docker://127.0.0.1:5000/library/debian:latest "$name" "$tag" ;;
			*/kitten) push "oci:$work/busybox" "$name" "$tag" ;;
		esac
	done
	mv "$work/storage" "$out/registry"
}
