# Prints the last lines of the agent's journal since time $1.
journalctl --unit=edgellm-agent "--since=@$1" --lines=12 --no-pager --output=cat
true
