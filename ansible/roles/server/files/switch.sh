# Switches the server to version $1, with the unit, identity, API keys and certificates that come as a tar stream. $2 is the
# identity's stamp, whose first 32 digits tell the models; $3 a URL of the server, $4 the seconds that it may take to answer there. Restarts it only if it must.
# If it doesn't answer, the version before runs again. Runs as root.
set -eu
umask 077
root=/opt/edgellm/server state=/var/lib/edgellm-server user=edgellm-server unit=edgellm-server.service
new=$(mktemp -d "$root/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
before=$(readlink "$root/current" || true)
getent group "$user" >/dev/null || groupadd --system "$user"
id "$user" >/dev/null 2>&1 || useradd --system --gid "$user" --no-create-home --home-dir "$state" \
  --shell /usr/sbin/nologin "$user"
install --directory --owner="$user" --group="$user" --mode=0700 "$state"
# What is changed from here on counts once the server has started with it: a run that is interrupted leaves this mark.
must() { [ -e "$root/.unfinished" ] || { touch "$root/.unfinished" && sync "$root"; }; }
put() {   # NAME PATH OWNER MODE; true if it was another file
  [ -e "$new/$1" ] || return 1
  if cmp -s "$new/$1" "$2"; then return 1; fi
  chown "$3:$3" "$new/$1" && chmod "$4" "$new/$1"
  cp -p "$new/$1" "$2.new"
  sync "$2.new"
  mv -f "$2.new" "$2"
}
cmp -s "$new/$unit" "/etc/systemd/system/$unit" || must
put "$unit" "/etc/systemd/system/$unit" root 0644 || true
for name in https-cert.pem https-key.pem; do
  if [ -e "$new/$name" ]; then
    cmp -s "$new/$name" "$state/$name" || must
    put "$name" "$state/$name" "$user" 0600 || true
  else
    rm -f "$state/$name"
  fi
done
put api-keys.json "$state/api-keys.json" "$user" 0600 || true   # which the server reads by itself
if [ "$before" != "versions/$1" ]; then
  must
  ln -s "versions/$1" "$new/current"
  mv -fT "$new/current" "$root/current"
fi
if [ "$(cat "$state/.joined" 2>/dev/null)" != "$2" ] || [ ! -e "$state/cluster.json" ]; then
  # A server that runs reads certificates, revocations and addresses again by itself, but not models.
  { [ -e "$state/cluster.json" ] && [ "$(cut -c -32 "$state/.joined" 2>/dev/null)" = "$(echo "$2" | cut -c -32)" ]; } || must
  chmod 0711 "$new"
  chown "$user" "$new/server.edgellm"
  cd /
  runuser -u "$user" -- env HOME="$state" "$root/current/bin/edgellm" join "$new/server.edgellm" --to "$state" --force >&2
  echo "$2" >"$state/.joined"
fi
answers() {   # waits until this server answers: another program may have its port
  "$root/current/bin/python" - "$3" "$4" <<'END'
import json, ssl, sys, time, urllib.request
context = ssl._create_unverified_context()  # whether it answers, not who
deadline = time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline:
    try:
        with urllib.request.urlopen(sys.argv[1] + "/health", timeout=5, context=context) as answer:
            if "boards" in json.loads(answer.read(65536)):
                sys.exit()
    except (OSError, ValueError, TypeError):
        pass
    time.sleep(0.3)
sys.exit(1)
END
}
began=$(date +%s)
if [ -e "$root/.unfinished" ]; then
  systemctl daemon-reload
  systemctl enable --quiet "$unit"
  systemctl restart "$unit"
else
  systemctl enable --quiet --now "$unit"
fi
if ! answers "$@"; then
  said=$(journalctl --unit="$unit" "--since=@$began" --lines=40 --no-pager --output=cat |
    grep -v '^ \|^Traceback\|systemd\|Started\|Stopped\|Scheduled\|Main process\|Failed with' | tail -n 3 | tr '\n' '|')
  if [ -n "$before" ] && [ "$before" != "versions/$1" ] && [ -e "$root/$before/.complete" ]; then
    ln -s "$before" "$new/current"
    mv -fT "$new/current" "$root/current"
    systemctl restart "$unit"
    echo "edgellm: the server of edgellm $1 doesn't answer at $3, so ${before#versions/} runs again: ${said%|}" >&2
  else
    echo "edgellm: the server doesn't answer at $3 after $4 s: ${said%|}" >&2
  fi
  exit 1
fi
rm -f "$root/.unfinished"
# Keep the current version and the one before.
for folder in "$root"/versions/*/; do
  name=versions/$(basename "$folder")
  [ "$name" = "versions/$1" ] || [ "$name" = "$before" ] || rm -rf "$folder"
done
