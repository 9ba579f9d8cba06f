#!/bin/sh
# EXPECT: exit:42 | out~PWNED
# WHY: what the replaced system did: a message pasted into sh -c "echo '$MSG'" runs the attacker's command. Nothing here may ever build such a string
[ -e /.dockerenv ] || [ -n "$KUBERNETES_SERVICE_HOST" ] || [ "$HOSTILE_OK" = 1 ] || { echo "refusing: not in a sandbox"; exit 97; }
MSG="hi'; echo PWNED; touch /tmp/pwned; echo '"
sh -c "echo '$MSG'"          # as the replaced system did
[ -e /tmp/pwned ] && { rm -f /tmp/pwned; exit 42; } ; exit 0
