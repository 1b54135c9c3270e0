# Runs once an agent has not started: $1 is its version, $2 the one to go back to or "", $3 since when. Prints what its
# journal says, and what only systemd knows. The version is installed again next time. If there is none to go back to,
# nothing is left that would be started for ever.
journalctl --unit=edgellm-agent "--since=@$3" --lines=30 --no-pager --output=cat
if [ "$(systemctl show --property=ExecMainStatus --value edgellm-agent.service)" = 203 ]; then
  program=$(systemctl show --property=ExecStart --value edgellm-agent.service | sed -n 's/.*path=\([^ ;]*\).*/\1/p')
  echo "systemd can't execute $program (203/EXEC), whose Python is '$(readlink -f /opt/edgellm/current/bin/python)'"
fi
rm -f "/opt/edgellm/versions/$1/.complete"
[ -n "$2" ] || systemctl disable --quiet --now edgellm-agent.service
true
