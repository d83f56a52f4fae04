# shellcheck shell=bash
# What bin/up, bin/down and bin/test need before Python can take over: programs, and the virtual environment.
# Bash and Debian's minimal install are enough for this file. Callers may set `yes` (1: do not ask), `suite`,
# `with_php` (1: what the tests of the PHP half need), `with_tools` (1: programs that a deploy runs if it is asked to,
# so that their tests are not skipped), `with_browser` (1: what the tests in a browser need) and `docker_mb` (the free
# space, in MB, that containers made anew need).
#
#   KESTREL_STACK_VENV    another folder for the virtual environment, so that several checkouts share one
#   KESTREL_STACK_DOCKER  another Docker client than /usr/bin/docker or the first on PATH

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv=${KESTREL_STACK_VENV:-$root/.venv}
lock=$root/requirements/controller.txt
# In an environment that a bin/* has made or begun to make; in one that is whole.
made=.kestrel-stack-made
stamp=.kestrel-stack-stamp
program=bin/${0##*/}
yes=0
suite=bookworm
with_php=0
with_tools=0
with_browser=0
docker_mb=2000
# Measured: the environment has 504 MB, pip unpacks less than 300 MB at a time, the rest is logs.
venv_mb=800
unpack_mb=300
log_mb=100
[[ ${CI:-} == true ]] && yes=1
# What this run did, for Python to report; another bin/* that runs us has its own.
unset KESTREL_STACK_BOOTSTRAPPED KESTREL_STACK_BOOTSTRAP_SECONDS KESTREL_STACK_ENGINE_STARTED

fail() { printf '%s: %s\n' "$program" "$1" >&2; exit "${2:-1}"; }
is_root() { [[ $(id -u) -eq 0 ]]; }
has() { command -v "$1" >/dev/null 2>&1; }

# --- steps: one line each; on a terminal a timer runs on long ones ---------------------------------------------------

# step NAME LOG COMMAND...: runs the command with its output in LOG; says how long it took, or shows LOG's end.
step() {
    local name=$1 log=$2 started=$SECONDS pid status=0
    shift 2
    mkdir -p "$(dirname "$log")"
    # A process group of its own, so that an interrupted step takes everything it started with it.
    set -m
    "$@" </dev/null >"$log" 2>&1 9>&- &
    pid=$!
    set +m
    trap 'kill -- "-$pid" 2>/dev/null; printf "\n%s: interrupted; run it again to go on\n" "$program" >&2; exit 130' INT TERM
    if [[ -t 1 ]]; then
        while kill -0 "$pid" 2>/dev/null; do
            printf '\r  %-44s %4d s' "$name" "$((SECONDS - started))"
            sleep 0.2
        done
        printf '\r'
    fi
    wait "$pid" || status=$?
    trap - INT TERM
    if [[ $status -eq 0 ]]; then
        printf '  %-44s %4d s\n' "$name" "$((SECONDS - started))"
        return 0
    fi
    printf '  %-44s failed after %d s; the end of %s:\n' "$name" "$((SECONDS - started))" "$log" >&2
    tail -n 12 "$log" | sed 's/^/    /' >&2
    fail "$name failed$(advice "$log")"
}

# What a log's end says about the machine, not about us.
advice() {
    local end
    end=$(tail -n 40 "$1")
    case $end in
        *"No space left on device"* | *"Disk quota exceeded"*) printf ': the disk is full; make room, then run %s again' "$program" ;;
        *"Temporary failure in name resolution"* | *"Name or service not known"* | *"Network is unreachable"* | \
            *"No route to host"* | *"Connection refused"* | *"Temporary failure resolving"* | *"Could not resolve"* | \
            *"Could not connect to"* | *"Cannot connect to proxy"* | *ConnectTimeoutError* | *"Read timed out"* | *"(from versions: none)"*)
            printf ': no way to where packages are; mend the network, or name a proxy (https_proxy) or an index (PIP_INDEX_URL), then run %s again' "$program" ;;
        *"Could not get lock"*) printf ': another apt runs on this machine; let it end, then run %s again' "$program" ;;
        *CERTIFICATE_VERIFY_FAILED*)
            printf ': a certificate on the way to the packages is not trusted here; name the authority (PIP_CERT), then run %s again' "$program" ;;
    esac
}

# --- what is there ---------------------------------------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Prints the Python to use: python3 when it is one of those supported, else the newest of them that is there. Not the one
# of the virtual environment, which comes first on PATH once somebody has activated it, and goes away when it is made anew.
find_python() {
    local candidate entry entries others=
    IFS=: read -ra entries <<<"$PATH"
    for entry in "${entries[@]}"; do
        [[ $entry -ef $venv/bin ]] || others+=${others:+:}$entry
    done
    local PATH=$others
    for candidate in python3 python3.13 python3.12 python3.11; do
        case $(python_version "$candidate") in
            3.11 | 3.12 | 3.13) command -v "$candidate"; return 0 ;;
        esac
    done
    return 1
}

docker_client() {
    if [[ -n ${KESTREL_STACK_DOCKER:-} ]]; then command -v "$KESTREL_STACK_DOCKER"
    elif [[ -x /usr/bin/docker ]]; then echo /usr/bin/docker
    else command -v docker
    fi
}

engine_answers() {
    local client
    client=$(docker_client) && "$client" info >/dev/null 2>&1
}

# The base image is there, or the registry has it (which is asked without pulling anything).
base_image_in_reach() {
    local client
    client=$(docker_client) || return 1
    "$client" image inspect "kestrel-stack/base:$suite" >/dev/null 2>&1 ||
        "$client" image inspect "debian:$suite" >/dev/null 2>&1 ||
        [[ -n $("$client" images --quiet --filter "reference=kestrel-stack/host:$suite-*" 2>/dev/null) ]] ||
        timeout 20 "$client" manifest inspect "debian:$suite" >/dev/null 2>&1
}

# A virtual environment is believed when its stamp, written last, names this lock and this Python.
stamp_wanted() {
    printf '1 %s %s\n' "$(sha256sum <"$lock" | cut -d' ' -f1)" \
        "$("$python" -c 'import platform, sys; print(platform.python_version(), sys.base_prefix)')"
}
venv_ready() { [[ -x $venv/bin/python && $(cat "$venv/$stamp" 2>/dev/null) == "$(stamp_wanted)" ]]; }

# What is to become the virtual environment is emptied first, and so must be ours, or empty.
check_venv() {
    local what='is not a virtual environment and is not empty'
    [[ -e $venv/$made || -e $venv/$stamp || -z $(ls -A "$venv" 2>/dev/null) ]] && return 0
    [[ -e $venv/pyvenv.cfg ]] && what='is a virtual environment that no bin/* of a checkout has made'
    fail "$venv $what: move it away, or set KESTREL_STACK_VENV to another folder"
}

# Really makes one, since Debian's python3 has the module but not what it needs.
venv_works() (
    # A shell of its own: what it made goes with it, also when it is interrupted.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder" || :' EXIT
    "$1" -m venv "$folder/v" >/dev/null 2>&1
)

# --- the machine: refused before anything is changed -----------------------------------------------------------------

# The nearest folder of a path that exists.
standing() {
    local path=$1
    while [[ ! -e $path ]]; do path=$(dirname "$path"); done
    printf '%s\n' "$path"
}

# check_space PATH MB WHAT: df tells what this user may still write, so without df nothing is asked. A file system that
# does not know its size (some network drives and tmpfs without a limit) gives 0 for it.
check_space() {
    local path line size free
    has df || return 0
    path=$(standing "$1")
    line=$(df --block-size=1M --output=size,avail "$path" 2>/dev/null | tail -n 1) || return 0
    read -r size free <<<"$line" || return 0
    [[ $size =~ ^[0-9]+$ && $free =~ ^[0-9]+$ && $size -gt 0 ]] || return 0
    [[ $free -ge $2 ]] || fail "$path has $free MB free, and $3 needs $2 MB: make room, then run $program again"
}

check_files() {
    local path whose
    for path in "$root" "$root/.lab" "$root/.ansible"; do
        [[ ! -e $path || -w $path ]] && continue
        whose=$(stat -c %U "$path" 2>/dev/null) || whose='another user'
        fail "$path belongs to $whose, and $(id -un) may not write there: run $program as $whose, or: sudo chown -R $(id -un) '$path'"
    done
    if [[ -e $venv && ! -w $venv ]] && ! { [[ -n ${python:-} ]] && venv_ready; }; then
        whose=$(stat -c %U "$venv" 2>/dev/null) || whose='another user'
        fail "$venv belongs to $whose, and $(id -un) may not write there: run $program as $whose, or: sudo chown -R $(id -un) '$venv'"
    fi
}

# fab deploy sends what is committed: told before minutes of work, not after them.
check_commit() {
    local reason
    has git || return 0
    git -C "$root" cat-file -e HEAD:./examples/shop/deploy.yml 2>/dev/null && return 0
    reason=$(LC_ALL=C git -C "$root" rev-parse --verify HEAD 2>&1 >/dev/null) || true
    case $reason in
        *"dubious ownership"*)
            fail "$root belongs to another user, so git does not read it: run $program as that user, or: git config --global --add safe.directory '$root'" ;;
        *)
            fail "$root is no git clone with a commit, and fab deploy sends what is committed: git clone it, or there: git init && git add --all && git commit --message start" ;;
    esac
}

# Ansible refuses a locale that is not UTF-8, or that this machine does not have. C.UTF-8 is everywhere.
use_utf8() {
    has locale || return 0
    if [[ $(locale charmap 2>/dev/null) != UTF-8 || -n $(locale 2>&1 >/dev/null) ]]; then
        export LC_ALL=C.UTF-8
    fi
}

# --- what is missing: named before anything is changed ---------------------------------------------------------------

# check_needs WITH_ENGINE: fills `packages`; ends the program when something cannot be installed with apt.
check_needs() {
    local with_engine=$1 found
    packages=()
    check_venv
    if ! python=$(find_python); then
        if has python3; then
            found=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "that does not run")
            fail "Python 3.11, 3.12 or 3.13 is needed, found python3 $found; install one of them (Debian 12 and 13, Ubuntu 24.04 have one)"
        fi
        packages+=(python3 python3-venv)
        python=python3
    elif ! venv_ready && ! venv_works "$python"; then
        case $python in
            */python3) packages+=(python3-venv) ;;
            *) packages+=("${python##*/}-venv") ;;
        esac
    fi
    check_files
    if venv_ready; then
        check_space "$root" "$log_mb" 'a log of what is done'
    else
        check_space "$venv" "$venv_mb" 'a virtual environment'
        check_space "${TMPDIR:-/tmp}" "$unpack_mb" 'what pip unpacks'
    fi
    if [[ $with_engine -eq 1 ]]; then
        check_commit
    fi
    has git || packages+=(git)
    { has ssh && has ssh-keygen; } || packages+=(openssh-client)
    if [[ $with_php -eq 1 ]]; then
        check_php
    fi
    if [[ $with_tools -eq 1 ]]; then
        check_tools
    fi
    if [[ $with_browser -eq 1 ]]; then
        check_browser
    fi
    if [[ $with_engine -eq 1 ]]; then
        check_engine
    fi
}

check_php() {
    local extension
    has php || packages+=(php-cli)
    for extension in memcached sqlite3; do
        php -r "exit((int) !extension_loaded('$extension'));" >/dev/null 2>&1 || packages+=("php-$extension")
    done
    has phpunit || packages+=(phpunit)
}

check_tools() {
    local program
    # Composer takes packages out of zip files with unzip.
    for program in composer unzip rsync; do
        has "$program" || packages+=("$program")
    done
}

check_browser() {
    has chromium || packages+=(chromium)
    # Without a font a page has no letters, and chromium only recommends some.
    compgen -G '/usr/share/fonts/truetype/*/*.ttf' >/dev/null || packages+=(fonts-liberation)
}

check_engine() {
    local client reason
    if [[ ${KESTREL_STACK_DOCKER:-} == */* ]] && ! has "$KESTREL_STACK_DOCKER"; then
        fail "KESTREL_STACK_DOCKER=$KESTREL_STACK_DOCKER: there is no such program; correct or unset it"
    fi
    if engine_answers; then
        check_containers
        if ! has mmdebstrap && ! base_image_in_reach; then
            packages+=(mmdebstrap)
        fi
    else
        if client=$(docker_client); then
            # Not by info, whose error output is "errors pretty printing info" with Debian 12's client.
            reason=$("$client" ps 2>&1 >/dev/null | grep -vE '^(WARNING|$)' | tail -n 1) || true
            if [[ -n ${DOCKER_HOST:-} ]]; then
                fail "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST: ${reason:-no reason given}; correct or unset DOCKER_HOST"
            fi
            if [[ $reason == *"permission denied"* ]] && ! is_root; then
                fail "user $(id -un) may not use the Docker engine: run 'sudo usermod -aG docker $(id -un)', log in again, run $program again"
            fi
        fi
        if ! is_root && ! has sudo; then
            fail "no Docker engine answers, and only root can install or start one: run $program as root, or ask for: apt-get install -y docker.io"
        fi
        { [[ -n $client ]] && { has dockerd || [[ -x /usr/sbin/dockerd ]]; }; } || packages+=(docker.io)
        if [[ " ${packages[*]} " == *" docker.io "* ]] && client_is_split_off; then
            packages+=(docker-cli)
        fi
        # Whether the base image can be pulled is not known before there is an engine.
        has mmdebstrap || packages+=(mmdebstrap)
    fi
    if [[ ${packages[*]} == *mmdebstrap* ]] && ! [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
        packages+=(debian-archive-keyring gpg)
    fi
}

# As in Debian 13. Not known as long as apt has no lists.
client_is_split_off() { has apt-cache && apt-cache show docker-cli >/dev/null 2>&1; }

# An engine of this machine, and its containers' way out.
check_containers() {
    local client about name security folder
    client=$(docker_client)
    about=$("$client" info --format '{{.Name}}{{"\n"}}{{.SecurityOptions}}{{"\n"}}{{.DockerRootDir}}' 2>/dev/null) || return 0
    { read -r name && read -r security && read -r folder; } <<<"$about" || return 0
    # In a virtual machine (Docker Desktop), behind a context or DOCKER_HOST, or seen from inside a container: its
    # disk and its network are not those that are seen here.
    [[ -z ${DOCKER_HOST:-} && $name == "$(</proc/sys/kernel/hostname)" ]] || return 0
    # An engine without root has a network of its own.
    if [[ $security != *name=rootless* && $(cat /proc/sys/net/ipv4/ip_forward 2>/dev/null) == 0 ]]; then
        fail "this machine forwards no packets, so containers reach no packages: sudo sysctl -w net.ipv4.ip_forward=1"
    fi
    # Containers that stand need nothing more.
    [[ $folder == /* && -z $("$client" ps --all --quiet --filter "label=kestrel-stack.checkout=$root" 2>/dev/null) ]] || return 0
    check_space "$folder" "$docker_mb" "what $program makes in Docker"
}

# --- installing ------------------------------------------------------------------------------------------------------

install_packages() {
    [[ ${#packages[@]} -gt 0 ]] || return 0
    local sudo='' line answer
    is_root || sudo='sudo '
    line="${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends ${packages[*]}"
    has apt-get || fail "missing: ${packages[*]} (names of Debian's packages); install them with this machine's package manager"
    printf '%s: missing: %s. This installs it:\n    %s\n' "$program" "${packages[*]}" "$line" >&2
    if [[ -n $sudo ]] && ! has sudo; then
        fail "sudo is missing too: run that line, without sudo, as root"
    fi
    if [[ $yes -ne 1 ]]; then
        [[ -t 0 ]] || fail "no terminal to ask on: run that line, or give --yes"
        read -r -p "Run it now? [y/N] " answer || answer=n
        [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "nothing was changed"
    fi
    local before=0
    engine_answers && before=1
    # The password is asked for here, since the step's own output goes to a file.
    if [[ -n $sudo ]]; then
        if [[ -t 0 ]]; then sudo -v || fail "sudo refused"; else sudo -n true 2>/dev/null || fail "sudo asks for a password: run that line by hand"; fi
    fi
    step "Install ${packages[*]}" "$root/.lab/bootstrap/apt.log" apt_install "${packages[@]}"
    if [[ $before -eq 0 && ! -d /run/systemd/system ]] && engine_answers; then
        # Without systemd the package itself starts the engine; bin/down is to stop it.
        export KESTREL_STACK_ENGINE_STARTED=1
    fi
}

apt_install() {
    local sudo=()
    is_root || sudo=(sudo -n)
    "${sudo[@]}" apt-get update -q || return 1
    if [[ " $* " == *" docker.io "* && " $* " != *" docker-cli "* ]] && client_is_split_off; then
        set -- "$@" docker-cli
    fi
    # A machine that was just switched on often upgrades itself: apt waits for that, since it is asked to.
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

make_venv() {
    local entry
    # The mark first, and it stays: whatever interrupts us, the next run knows that this folder is its own.
    mkdir -p "$venv" && : >"$venv/$made" && rm -f "$venv/$stamp" || return 1
    for entry in "$venv"/* "$venv"/.[!.]*; do
        [[ $entry == "$venv/$made" ]] || rm -rf "$entry" || return 1
    done
    "$python" -m venv "$venv" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes --no-deps -r "$lock" || return 1
    if [[ -z ${KESTREL_STACK_VENV:-} ]]; then
        # A shared environment belongs to no checkout; there PYTHONPATH alone names the source.
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation --quiet -e "$root" || return 1
    fi
    stamp_wanted >"$venv/$stamp.new" && mv "$venv/$stamp.new" "$venv/$stamp"
}

# bootstrap WITH_ENGINE: after it, `$venv/bin` is on PATH and Python takes over. One at a time per environment.
bootstrap() {
    check_needs "$1"
    install_packages
    python=$(find_python) || fail "Python 3.11, 3.12 or 3.13 is needed, and installing python3 did not bring one"
    if [[ $1 -eq 1 ]]; then
        check_commit
    fi
    if ! venv_ready; then
        mkdir -p "$root/.lab" "$(dirname "$venv")"
        local mutex=$root/.lab/bootstrap.lock
        [[ -z ${KESTREL_STACK_VENV:-} ]] || mutex=$venv.lock
        exec 9>"$mutex"
        if ! flock -n 9; then
            printf '  waiting for another bin/* that prepares %s\n' "$venv"
            flock 9
        fi
        if ! venv_ready; then
            step "Prepare ${venv#"$root"/} (Python $(python_version "$python"))" "$root/.lab/bootstrap/venv.log" make_venv
            export KESTREL_STACK_BOOTSTRAPPED=1
        fi
        exec 9>&-
    fi
    export KESTREL_STACK_BOOTSTRAP_SECONDS=$SECONDS
    export PATH=$venv/bin:$PATH
    # An environment may be shared: this checkout's source comes before one that is installed there.
    export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
    export ANSIBLE_CONFIG=$root/ansible.cfg
    # Ansible's and molecule's own files stay in the checkout, out of the home folder.
    export ANSIBLE_HOME=$root/.ansible
    use_utf8
    cd "$root" || fail "cannot enter $root"
}
