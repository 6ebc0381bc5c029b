# Bare Debian and Ubuntu systems to try things in; read by try_debian.sh and try_package.sh. Needs root and debootstrap.
ROOTS=${ROOTS:-/var/tmp/gemma4-roots}
SYSTEM=  # the one that was entered

is_ubuntu() {
  case $1 in jammy | noble | plucky | questing | resolute) ;; *) return 1 ;; esac
}

# bare_system SUITE PACKAGE...: makes $ROOTS/SUITE with these packages, where it is not there.
bare_system() {
  local suite=$1 include
  shift
  [ -e "$ROOTS/$suite/.complete" ] && return
  [ "$(id -u)" = 0 ] || { echo "a bare system is made as root" >&2; exit 2; }
  command -v debootstrap >/dev/null || { echo "a bare system needs the package debootstrap" >&2; exit 2; }
  local mirror=${MIRROR:-} components=main script=
  if is_ubuntu "$suite"; then
    components=main,universe
    script=gutsy  # of all releases since; it knows Ubuntu's mirror
    [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || [ -n "${UNCHECKED:-}" ] ||
      { echo "a bare Ubuntu needs the package ubuntu-keyring; UNCHECKED=1 goes without signatures" >&2; exit 2; }
  elif [ -z "$mirror" ]; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 'Created-By: Packages' |
      head -1)
    [ -n "$mirror" ] || { echo "apt on this machine has no Debian mirror; name one in MIRROR" >&2; exit 2; }
  fi
  mkdir -p "$ROOTS/packages"
  rm -rf "${ROOTS:?}/$suite"
  include=$(IFS=,; echo "$*")
  debootstrap ${UNCHECKED:+--no-check-gpg} --variant=minbase --components="$components" ${include:+--include="$include"} \
    --cache-dir="$ROOTS/packages" "$suite" "$ROOTS/$suite" "$mirror" $script >"$ROOTS/$suite.log" 2>&1 || { tail -5 "$ROOTS/$suite.log" >&2; exit 1; }
  touch "$ROOTS/$suite/.complete"
}

# enter_system SUITE NAME: a copy of the bare system in $SYSTEM.
enter_system() {
  SYSTEM=$ROOTS/$1-$2
  leave_system
  cp -a --reflink=auto "$ROOTS/$1" "$SYSTEM"
  cp -L /etc/resolv.conf "$SYSTEM/etc/resolv.conf"
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$SYSTEM/etc/hosts"  # an installer writes it, debootstrap does not
  # A mirror may be a copy of some weeks ago, whose signatures have run out.
  echo 'Acquire::Check-Valid-Until "false";' >"$SYSTEM/etc/apt/apt.conf.d/99old-mirror"
  mount -t proc proc "$SYSTEM/proc"
  mount --rbind --make-rslave /dev "$SYSTEM/dev"
}

# in_system COMMAND: runs it there as root.
in_system() {
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 ${CXX:+CXX="$CXX"} \
    ${CCACHE_DIR:+CCACHE_DIR="$CCACHE_DIR"} chroot "$SYSTEM" bash -c "$1"
}

leave_system() {
  [ -d "$SYSTEM" ] || return 0
  local mounted
  for mounted in $(findmnt -rno TARGET | grep "^$SYSTEM/" | sort -r); do umount -l "$mounted"; done
  [ "${KEEP:-}" = 1 ] && return
  if findmnt -rno TARGET | grep -q "^$SYSTEM/"; then
    echo "something is still mounted in $SYSTEM; it is not removed" >&2
    exit 1
  fi
  rm -rf "$SYSTEM"
}
