# Prints facts about a board, one a line: edgellm_NAME=VALUE. POSIX sh, changes nothing, needs no Python. Runs as the
# SSH user, except that as_root runs its argument as root.
say() { echo "edgellm_$1=$2"; }
as_root() { if [ "$(id -u)" = 0 ]; then sh -c "$1"; else sudo -n sh -c "$1"; fi; }
LC_ALL=C
export LC_ALL
say time_s "$(date +%s)"
say user "${SUDO_USER:-$(id -un)}"
as_root true 2>/dev/null && say root yes
say id "$(. /etc/os-release && echo "$ID")"
say id_like "$(. /etc/os-release && echo "$ID_LIKE")"
say pretty "$(. /etc/os-release && echo "$PRETTY_NAME")"
say machine "$(uname -m)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say packages_for "$(dpkg --print-architecture 2>/dev/null)"
[ -d /run/systemd/system ] && say systemd yes
say ram_kb "$(awk '/^MemTotal:/ {print $2}' /proc/meminfo)"
say ram_free_kb "$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)"
say rsync "$(command -v rsync)"
# What the running agent holds in memory would be free without it, and these are the limits that it runs with.
pid=$(systemctl show --property=MainPID --value edgellm-agent.service 2>/dev/null)
say agent_kb "$(awk '/^RssAnon:/ {print $2}' "/proc/${pid:-0}/status" 2>/dev/null)"
unit=/etc/systemd/system/edgellm-agent.service
say agent_memory_max "$(sed -n 's/^MemoryMax=//p' $unit 2>/dev/null)"
say agent_ram "$(sed -n 's/.* --ram \([^ ]*\).*/\1/p' $unit 2>/dev/null)"
say agent_path "$(sed -n 's/.* --path \([^ ]*\).*/\1/p' $unit 2>/dev/null)"
for folder in /opt /var/lib /etc; do
  # Try to write, because folders still look writable after a card error. A missing folder would be created in /.
  there=$folder
  [ -d "$there" ] || there=/
  case $(as_root "file=\$(mktemp -p $there .edgellm.XXXXXX) && rm \$file" 2>&1) in
    *"Read-only file system"*) say read_only "$folder" && break ;;
  esac
done
free_kb() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 {print $4}'; }
say opt_free_kb "$([ -d /opt ] && free_kb /opt || free_kb /)"
say var_free_kb "$(free_kb /var/lib)"
complete=
for folder in /opt/edgellm/versions/*/; do
  [ -e "$folder.complete" ] && [ -x "${folder}bin/python" ] && complete="$complete $(basename "$folder")"
done
say complete "${complete# }"
say installed "$(readlink /opt/edgellm/current 2>/dev/null)"
say libraries "$(cat /opt/edgellm/current/.libraries 2>/dev/null)"
for torch in /opt/edgellm/current/lib/python3*/site-packages/torch; do [ -d "$torch" ] && say torch yes; done
for python in python3 python3.14 python3.13 python3.12 python3.11; do
  path=$(command -v "$python") || continue
  version=$("$path" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
  # Debian's python3-minimal lacks some of these.
  whole=$("$path" -c 'import ctypes, json, sqlite3, ssl, venv, zipfile; print("yes")' 2>/dev/null)
  say python "$path"
  say python_version "$version"
  say python_whole "$whole"
  "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && [ "$whole" = yes ] && break
done
true
