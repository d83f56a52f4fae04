#!/usr/bin/env bash
# Stand-in for the installer of getsentry/self-hosted: it writes down how it was called, says its stages as the real one
# does, makes the volumes and stops everything at its end. state/install-fails, -hangs and -edits make it do so.
set -eu
here=$(dirname "$(readlink -f "$(command -v docker)")")
state=$here/state
mkdir -p "$state"
number=$(ls -d "$state"/install-[0-9]* 2>/dev/null | wc -l)
mkdir "$state/install-$number"
cp .env.custom sentry/config.yml sentry/sentry.conf.py docker-compose.override.yml "$state/install-$number/"
printf '{"call": ["%s"%s], "stdin": "", "cwd": "%s"}\n' "$0" "$(printf ', "%s"' "$@")" "$PWD" >>"$state/calls.jsonl"
printf '%s\n' '▶ Checking minimum requirements ...' '▶ Fetching and updating docker images ...'
if [ -e "$state/install-hangs" ]; then
  echo "$$" >"$state/hanging"
  sleep 300
fi
if [ -e "$state/install-fails" ]; then
  echo "FAIL: $(cat .env.custom | tail -n 1)"
  exit 1
fi
if [ -e "$state/install-edits" ]; then
  sed -i 's/"HOST": "postgres"/"HOST": "pgbouncer"/' sentry/sentry.conf.py
fi
for name in sentry-data sentry-postgres sentry-kafka; do
  docker volume create "--name=$name"
done
[ -e "$state/volumes/sentry-postgres/version" ] || echo none >"$state/volumes/sentry-postgres/version"
grep ^SENTRY_IMAGE .env >>"$state/volumes/sentry-postgres/version"
docker compose --ansi never --env-file .env.custom stop -t 60
