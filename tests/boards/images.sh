# What the lab needs on this machine, and how the boards' images are made; read by lab.
# shellcheck shell=bash disable=SC2154

packages() {
  echo "mmdebstrap:mmdebstrap nft:nftables ssh:openssh-client lxcfs:lxcfs ip:iproute2 ps:procps losetup:mount mkfs.ext4:e2fsprogs gcc:gcc patchelf:patchelf python3:python3"
  [ "${1:-}" != arm ] || echo "qemu-aarch64-static:qemu-user-static arch-test:arch-test"
}

install() {
  local pair missing=()
  for pair in $(packages "${1:-}"); do command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}"); done
  [ ${#missing[@]} -eq 0 ] && return
  timeout 300 apt-get update -qq
  DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

check() {
  local c pair said=0
  say() { echo "$*"; said=1; }
  [ "$(uname -s)" = Linux ] || { say "this is not Linux"; return 1; }
  [ "$(id -u)" = 0 ] || { say "boards need root: their namespaces, mounts and addresses"; return 1; }
  [ "$(uname -m)" = x86_64 ] || say "the boards' image is for x86-64, this is $(uname -m)"
  for c in $controllers systemd; do mountpoint -q "$cgroups/$c" || { say "no cgroup v1: $cgroups/$c is not mounted"; break; }; done
  unshare --mount --pid --fork --uts --ipc --net --cgroup true 2>/dev/null || say "namespaces can't be had: 'unshare --mount --pid --uts --ipc --net --cgroup' fails"
  grep -qw overlay /proc/filesystems || say "this kernel has no overlay file system"
  grep -qw fuse /proc/filesystems && [ -e /dev/fuse ] || say "this kernel has no FUSE, which lxcfs needs"
  losetup -f >/dev/null 2>&1 || say "no loop device is free"
  for pair in $(packages); do command -v "${pair%%:*}" >/dev/null || say "${pair%%:*} is missing: 'tests/boards/lab install' gets it"; done
  return $said
}

bootstrap() { # TARGET SUITE [mmdebstrap options]: a system that a person could log in to and not much else
  local b=$1 suite=$2 unit; shift 2
  timeout 900 mmdebstrap --quiet --variant=minbase "$@" --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=systemd,systemd-sysv,dbus,openssh-server,iproute2,procps,sudo "$suite" "$b" </dev/null
  chroot "$b" useradd -m -s /bin/bash -G sudo edge
  echo 'edge ALL=(ALL) NOPASSWD:ALL' >"$b/etc/sudoers.d/edge"; chmod 440 "$b/etc/sudoers.d/edge"
  mkdir -m 700 "$b/home/edge/.ssh"; cp "$home/key.pub" "$b/home/edge/.ssh/authorized_keys"; chroot "$b" chown -R edge:edge /home/edge/.ssh
  cp /etc/resolv.conf "$b/etc/resolv.conf"
  printf 'UseDNS no\nMaxStartups 100\n' >"$b/etc/ssh/sshd_config.d/board.conf"
  : >"$b/etc/machine-id"; rm -f "$b/var/lib/dbus/machine-id"
  # what has no hardware here, or would work on its own
  for unit in getty@tty1.service console-getty.service getty.target systemd-timesyncd.service systemd-resolved.service systemd-networkd.service \
    systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service systemd-modules-load.service \
    systemd-remount-fs.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount dev-hugepages.mount \
    apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer; do
    ln -sf /dev/null "$b/etc/systemd/system/$unit"
  done
  ln -sf /lib/systemd/system/multi-user.target "$b/etc/systemd/system/default.target"
  # units with a /proc of their own (ProtectKernelTunables=, ProtectControlGroups=) would see this machine's memory: show them the board's
  mkdir -p "$b/etc/systemd/system/edgellm-.service.d"
  printf '[Service]\nBindReadOnlyPaths=-/run/lxcfs/proc/meminfo:/proc/meminfo\n' >"$b/etc/systemd/system/edgellm-.service.d/board.conf"
}

build() {
  local kind=${1:-full}
  [ ! -d "$images/$kind" ] || return 0
  mkdir -p "$images"; rm -rf "$images/$kind.new" "$images/work"
  [ -n "$(list)" ] || find "$home/images" -mindepth 1 -maxdepth 1 ! -path "$images" -exec rm -rf {} + # of older recipes
  [ -f "$home/key" ] || ssh-keygen -q -t ed25519 -N '' -C edgellm-boards -f "$home/key"
  case $kind in
  bare) bootstrap "$images/bare.new" bookworm ;;
  bullseye) bootstrap "$images/bullseye.new" bullseye --include=python3 ;;
  arm64)
    binfmt
    bootstrap "$images/arm64.new" bookworm --architectures=arm64
    in_image "$images/arm64.new" python3 ;;
  full) # a layer over bare
    build bare; mkdir -p "$images/full.new" "$images/work"
    timeout 600 unshare --mount --propagation private "$self" _layer "$images/full.new" python3; rm -rf "$images/work" ;;
  cpython) compile "$images/work" "$images/cpython.new"; rm -rf "$images/work" ;;
  *) die "no image '$kind': full, bare, bullseye, arm64 or cpython" ;;
  esac
  mv "$images/$kind.new" "$images/$kind"
}

compile() { # ROOT TARGET: CPython from Debian's source, installed there; built in ROOT, a Debian 11, for its glibc
  local root=$1 target=$2 out=$home/build.log
  timeout 900 mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io \
    --include=gcc,libc6-dev,make,xz-utils,zlib1g-dev,libbz2-dev,libffi-dev,liblzma-dev,libsqlite3-dev,libssl-dev bullseye "$root" \
    "deb http://deb.debian.org/debian bullseye main" "deb-src http://deb.debian.org/debian bookworm main" </dev/null
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  timeout 2400 chroot "$root" /bin/sh -euc '
    cd /root; apt-get update -qq; apt-get source -qq --download-only python3.11; tar -xf python3.11_*.orig.tar.*; cd Python-*
    LDFLAGS=-s ./configure --quiet --prefix=/usr --without-ensurepip --disable-test-modules; make -s -j2; make -s altinstall DESTDIR=/made
  ' </dev/null >"$out" 2>&1 || { tail -5 "$out" >&2; return 1; }
  # with the libraries that it needs, where those of a board would be
  local libraries=lib/x86_64-linux-gnu
  mkdir -p "$target/$libraries"; mv "$root/made/usr" "$target/usr"; mkdir "$target/usr/$libraries"
  cp -a "$root/$libraries"/*.so* "$target/$libraries/"; cp -a "$root/usr/$libraries"/*.so* "$target/usr/$libraries/"
}

in_image() { # ROOT PACKAGES...: install them there
  local root=$1 out=$home/build.log; shift
  { chroot "$root" apt-get update -qq && DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install -y -qq --no-install-recommends "$@"; } \
    </dev/null >"$out" 2>&1 || { tail -5 "$out" >&2; return 1; }
}

_layer() { # UPPER PACKAGES...: what apt adds to the bare image
  local upper=$1 m=$images/work/root; shift
  mkdir "$images/work/work" "$m"
  mount -t overlay overlay -o "lowerdir=$images/bare,upperdir=$upper,workdir=$images/work/work" "$m"
  in_image "$m" "$@"
  chroot "$m" apt-get clean; rm -rf "$m"/var/lib/apt/lists/* "$m"/var/log/apt/* "$m"/var/log/dpkg.log
  umount "$m"
}

binfmt() { # arm64 programs run through qemu-user; F: the interpreter is found at once, C: sudo keeps its rights
  local b=/proc/sys/fs/binfmt_misc
  mountpoint -q $b || mount -t binfmt_misc binfmt_misc $b
  [ ! -e $b/$name-arm64 ] || return 0
  printf '%s' ":$name-arm64:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:$(command -v qemu-aarch64-static):FC" >$b/register
}
