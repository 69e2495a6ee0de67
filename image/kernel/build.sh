#!/bin/sh
# Rebuilds vmlinuz beside this file: the distribution's kernel source package,
# the patches in patches/, and duet.config over `make tinyconfig`.
#
#   DUET_CACHE   where the source tree is kept between runs (default ~/.cache/duet)
#   KERNEL_SRC   the source archive (default /usr/src/linux-source-6.12.tar.xz)
#   JOBS         how many compilers at once (default: one for each CPU)
#
# A run with an unchanged archive and unchanged patches compiles only what the
# configuration changed. Dates and names of the machine stay out of the result.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
archive=${KERNEL_SRC:-/usr/src/linux-source-6.12.tar.xz}
build=${DUET_CACHE:-$HOME/.cache/duet}/kernel
tree=$build/tree
limit=16777216
started=$(date +%s)

die() {
	echo "kernel: $*" >&2
	exit 1
}

# One line that names every package that is missing.
check_packages() {
	missing=
	need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
	need gcc gcc
	need make make
	need flex flex
	need bison bison
	need bc bc
	need patch patch
	need perl perl
	need xz xz-utils
	need zstd zstd
	[ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
	[ -e "$archive" ] || missing="$missing linux-source-6.12"
	[ -z "$missing" ] || die "missing packages; run: apt-get install$missing"
}

# The tree is made anew when the archive or a patch is not what it was made of.
unpack() {
	stamp=$({ ls -lL "$archive"; cat "$here"/patches/*.patch; } | sha256sum)
	[ "$(cat "$build/stamp" 2>/dev/null)" = "$stamp" ] && return
	echo "kernel: unpacking $archive into $tree"
	rm -rf "$tree" "$build/stamp"
	mkdir -p "$tree"
	tar -xJf "$archive" -C "$tree" --strip-components=1
	for p in "$here"/patches/*.patch; do
		echo "kernel: applying ${p##*/}"
		patch -d "$tree" -p1 -s --fuzz=0 <"$p" ||
			die "${p##*/} does not apply to $archive; adapt the patch to that source"
	done
	echo "$stamp" >"$build/stamp"
}

# A symbol whose dependency is missing vanishes silently: name those.
configure() {
	make -s tinyconfig
	scripts/kconfig/merge_config.sh -m .config "$here/duet.config" >/dev/null
	make -s olddefconfig
	lost=$(grep '^CONFIG_[A-Za-z0-9_]*=' "$here/duet.config" | grep -vxF -f .config || true)
	[ -z "$lost" ] || die "not in the final configuration (a dependency is missing):
$lost"
}

check_packages
unpack
cd "$tree"

export KBUILD_BUILD_USER=duet KBUILD_BUILD_HOST=duet KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$(stat -Lc %Y Makefile)")
export KBUILD_BUILD_TIMESTAMP
configure
make -s -j"${JOBS:-$(nproc)}" bzImage

size=$(stat -c %s arch/x86/boot/bzImage)
[ "$size" -le "$limit" ] || die "vmlinuz has $size bytes, the limit is $limit: take something out of duet.config"
cp arch/x86/boot/bzImage "$here/vmlinuz.new"
mv "$here/vmlinuz.new" "$here/vmlinuz"
echo "kernel: Linux $(make -s kernelrelease), $size bytes, built in $(($(date +%s) - started)) s"
echo "kernel: uncompressed: $tree/vmlinux"
