#!/usr/bin/env bash
# Stand-in for scripts/backup.sh of getsentry/self-hosted.
set -eu
state=$(dirname "$(readlink -f "$(command -v docker)")")/state
printf '{"call": ["%s"%s], "stdin": "", "cwd": "%s"}\n' "$0" "$(printf ', "%s"' "$@")" "$PWD" >>"$state/calls.jsonl"
[ ! -e "$state/backup-fails" ] || exit 1
echo '[{"model": "sentry.user"}]' >sentry/backup.json
chmod 666 sentry/backup.json
