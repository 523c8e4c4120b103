# What is in each image, after the official ones of that name. Sourced by build.
# shellcheck shell=bash disable=SC2154

default_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

build_debian() {
    # debootstrap makes device nodes and mounts: straight on a plain folder, which is the layer.
    mkdir -p "$work/layers/debian"
    debootstrap --variant=minbase "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work/layers/debian" > "$work/debootstrap.log" 2>&1 \
        || { tail -n 50 "$work/debootstrap.log"; return 1; }
    root=$work/layers/debian slim
    rm -rf "$work/layers/debian/dev" && mkdir "$work/layers/debian/dev"
    rm -f "$work/layers/debian/etc/hostname" "$work/layers/debian/etc/resolv.conf"
    image debian amd64 "$(jq -cn --arg p "PATH=$default_path" '{Env: [$p], Cmd: ["bash"]}')" debian
    index debian
}

build_nginx() {
    layer nginx-packages debian -- install nginx-light curl
    layer nginx-files nginx-packages debian -- nginx_files
    image nginx amd64 "$(jq -cn --arg p "PATH=$default_path" '{Env: [$p, "NGINX_VERSION=1.22.1"], ExposedPorts: {"80/tcp": {}},
        Entrypoint: ["/docker-entrypoint.sh"], Cmd: ["nginx", "-g", "daemon off;"], StopSignal: "SIGQUIT"}')" \
        debian nginx-packages nginx-files
    index nginx
}

nginx_files() {
    ln -sf /dev/stdout "$root/var/log/nginx/access.log"
    ln -sf /dev/stderr "$root/var/log/nginx/error.log"
    rm "$root/etc/nginx/sites-enabled/default" # a file of the layer below: so this layer holds a whiteout
    mkdir -p "$root/usr/share/nginx/html"
    echo '<h1>Welcome to nginx!</h1>' > "$root/usr/share/nginx/html/index.html"
    cat > "$root/etc/nginx/conf.d/default.conf" << 'CONF'
server {
    listen 80;
    location / {
        root /usr/share/nginx/html;
        index index.html;
    }
}
CONF
    cat > "$root/docker-entrypoint.sh" << 'SH'
#!/bin/sh
set -e
for script in /docker-entrypoint.d/*.sh; do
    if [ -x "$script" ]; then "$script"; fi
done
exec "$@"
SH
    chmod 755 "$root/docker-entrypoint.sh"
}

build_redis() {
    layer redis-packages debian -- install redis-server
    layer redis-files redis-packages debian -- redis_files
    image redis amd64 "$(jq -cn --arg p "PATH=$default_path" '{Env: [$p, "REDIS_VERSION=7.0.15"], ExposedPorts: {"6379/tcp": {}},
        Entrypoint: ["docker-entrypoint.sh"], Cmd: ["redis-server"], Volumes: {"/data": {}}, WorkingDir: "/data"}')" \
        debian redis-packages redis-files
    index redis
}

redis_files() {
    mkdir -p "$root/data"
    chown --reference="$root/var/lib/redis" "$root/data"
    cat > "$root/usr/local/bin/docker-entrypoint.sh" << 'SH'
#!/bin/sh
set -e
# Flags alone are redis-server's.
case "$1" in -*) set -- redis-server "$@" ;; esac
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . \! -user redis -exec chown redis '{}' +
    exec setpriv --reuid=redis --regid=redis --clear-groups -- "$0" "$@"
fi
[ "$1" = redis-server ] && set -- "$@" --protected-mode no
exec "$@"
SH
    chmod 755 "$root/usr/local/bin/docker-entrypoint.sh"
}

build_busybox() {
    layer busybox -- busybox_files
    local config
    config=$(jq -cn --arg p "PATH=$default_path" '{Env: [$p], Cmd: ["sh"]}')
    image busybox amd64 "$config" busybox
    # Another platform beside ours, as in the real index; nothing here can run it.
    layer foreign -- foreign_files
    image busybox arm64 "$config" foreign
    index busybox nested
}

busybox_files() {
    mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,tmp,usr,var/spool/mail,var/www}
    chmod 1777 "$root/tmp"
    chmod 700 "$root/root"
    cp /bin/busybox "$root/bin/busybox"
    local applet
    for applet in $(/bin/busybox --list); do
        [[ $applet == busybox ]] || ln "$root/bin/busybox" "$root/bin/$applet"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false www-data:x:33:33:www-data:/var/www:/bin/false \
        nobody:x:65534:65534:nobody:/home:/bin/false > "$root/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: tty:x:5: users:x:100: www-data:x:33: nobody:x:65534: > "$root/etc/group"
}

# An image for another platform only.
build_elsewhere() {
    image elsewhere arm64 '{"Cmd": ["/true"]}' foreign
    index elsewhere nested
}

foreign_files() {
    printf 'not for this machine\n' > "$root/true"
    chmod 755 "$root/true"
}
