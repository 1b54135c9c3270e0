# Prints facts about a board, one a line: edgellm_NAME=VALUE. POSIX sh, changes nothing, needs no Python. Runs as root.
say() { echo "edgellm_$1=$2"; }
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin LC_ALL=C
export PATH LC_ALL

# User and clock
say time_s "$(date +%s)"
say user "${SUDO_USER:-$(id -un)}"
[ "$(id -u)" = 0 ] && say root yes

# System and machine
say id "$(. /etc/os-release && echo "$ID")"
say id_like "$(. /etc/os-release && echo "$ID_LIKE")"
say pretty "$(. /etc/os-release && echo "$PRETTY_NAME")"
say machine "$(uname -m)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say packages_for "$(dpkg --print-architecture 2>/dev/null)"
[ -d /run/systemd/system ] && say systemd yes
say ram_kb "$(awk '/^MemTotal:/ {print $2}' /proc/meminfo)"
say ram_free_kb "$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)"
# What the running agent holds in memory would be free without it, and these are the limits that it runs with.
pid=$(systemctl show --property=MainPID --value edgellm-agent.service 2>/dev/null)
say agent_kb "$(awk '/^RssAnon:/ {print $2}' "/proc/${pid:-0}/status" 2>/dev/null)"
unit=/etc/systemd/system/edgellm-agent.service
say agent_memory_max "$(sed -n 's/^MemoryMax=//p' $unit 2>/dev/null)"
say agent_ram "$(sed -n 's/.* --ram \([^ ]*\).*/\1/p' $unit 2>/dev/null)"
say agent_path "$(sed -n 's/.* --path \([^ ]*\).*/\1/p' $unit 2>/dev/null)"

# Every folder that takes something: is there room, and can it be written? Try, because a folder still looks writable
# after a card error. A folder that isn't there yet will be on its parent's file system.
for folder in /opt/edgellm/versions /var/lib/edgellm/wheels /var/lib/edgellm/models /etc/edgellm/tls /run; do
  there=$folder
  until [ -d "$there" ]; do there=$(dirname "$there"); done
  say room "$(df -k --output=avail,iavail,itotal,target "$there" 2>/dev/null | tail -n 1) $folder"
  error=$( { file=$(mktemp "$there/.edgellm.XXXXXX") && echo 1 >"$file"; [ -z "$file" ] || rm -f "$file"; } 2>&1)
  case $error in
    "") ;;
    *"Read-only file system"*) say read_only "$folder" ;;
    *"No space left"* | *"quota exceeded"*) say full "$folder" ;;
    *) say unwritable "$folder: ${error##*: }" ;;
  esac
done
# The user edgellm must get to its folders. Their parents are the owner's.
for folder in / /opt /var /var/lib /etc; do
  case $(stat -L -c %a "$folder" 2>/dev/null) in *[02468]) say closed "$folder" ;; esac
done

# What is installed: a version whose agent has started once, and whose Python is still there
complete=
say versions "$(ls /opt/edgellm/versions 2>/dev/null | tr '\n' ' ')"
for folder in /opt/edgellm/versions/*/; do
  [ -e "$folder.complete" ] && [ -x "${folder}bin/python" ] && complete="$complete $(basename "$folder")"
done
say complete "${complete# }"
installed=$(readlink /opt/edgellm/current 2>/dev/null)
case " $complete " in *" ${installed##*/} "*) ;; *) installed= ;; esac
say installed "$installed"
if [ -n "$installed" ]; then
  say libraries "$(cat /opt/edgellm/current/.libraries 2>/dev/null)"
  for torch in /opt/edgellm/current/lib/python3*/site-packages/torch; do [ -d "$torch" ] && say torch yes; done
fi

# A Python for the agent: not one in a home or in /tmp, because the unit doesn't see those, and one that every user may
# run. A virtual environment, such as the controller's own, leads to the Python that it was made from.
about='
import os, sys
print("%d.%d.%d" % sys.version_info[:3])
print(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
import ctypes, json, sqlite3, ssl, venv, zipfile  # some are not in python3-minimal
print("yes")'
everyones() {
  case $1 in
    /usr/bin/*) return 0 ;;
    /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*) return 1 ;;
  esac
  ! command -v setpriv >/dev/null || setpriv --reuid=65534 --regid=65534 --clear-groups "$1" -c "" >/dev/null 2>&1
}
find_python() {
  hidden=
  # The last ones are those that deploy brought, the newest first.
  for name in python3 python3.14 python3.13 python3.12 python3.11 $(ls -dt /opt/edgellm/python-*/ 2>/dev/null); do
    [ -d "$name" ] && name=${name}bin/python3
    for path in "/usr/bin/$name" "/usr/local/bin/$name" "$(command -v "$name")"; do
      [ -x "$path" ] || continue
      told=$("$path" -c "$about" 2>/dev/null)
      version=$(echo "$told" | sed -n 1p)
      [ -n "$version" ] || continue
      real=$(echo "$told" | sed -n 2p)
      whole=$(echo "$told" | sed -n 3p)
      case $version in
        3.[0-9].* | 3.10.*) ;;
        *) everyones "$real" || { hidden=${hidden:-$real}; continue; } ;;
      esac
      say python "$real"
      say python_version "$version"
      say python_whole "$whole"
      case $version in 3.[0-9].* | 3.10.*) ;; *) [ "$whole" = yes ] && return ;; esac
    done
  done
  say python_hidden "$hidden"
}
find_python
true
