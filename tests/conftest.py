"""What every test may count on."""

import signal

# Whoever started the tests may have had Ctrl-C ignored (a shell does for what it runs in the background), and child
# processes would inherit that: ours are to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
