# What script/install puts on a machine and script/uninstall takes away. To be sourced, after machine.sh.

opt=/opt/tidegate

# files_of VERSION ROLE: what is copied, as `name in the version's systemd/` and `target`.
files_of() {
    local from=$1/systemd
    printf '%s %s\n' "$from/tidegate-$2.service" "/etc/systemd/system/tidegate-$2.service" \
        "$from/tidegate-$2.sysusers.conf" "/etc/sysusers.d/tidegate-$2.conf" \
        "$from/tidegate-$2.tmpfiles.conf" "/etc/tmpfiles.d/tidegate-$2.conf"
    [ "$2" != agent ] || printf '%s %s\n' \
        "$from/tidegate-trust.service" /etc/systemd/system/tidegate-trust.service \
        "$from/tidegate-trust.path" /etc/systemd/system/tidegate-trust.path
}

# make_folder DIR: what was not there is remembered, for script/uninstall: an empty folder may be the system's own.
make_folder() {
    local folder=$1 made=()
    while [ -n "$folder" ] && [ ! -d "$folder" ]; do
        made+=("$folder")
        folder=${folder%/*}
    done
    mkdir -p "$1" || return 1
    [ ${#made[@]} = 0 ] || printf '%s\n' "${made[@]}" >>"$opt/.made"
}

# remove_opt: with all versions, and the folders that were made, if nothing else is in them now.
remove_opt() {
    local made folder
    made=$(cat "$opt/.made" 2>/dev/null)
    rm -rf "$opt"
    while read -r folder; do
        [ ! -d "$folder" ] || rmdir --ignore-fail-on-non-empty "$folder"
    done <<<"$made"
}

user_of() {
    case $1 in
    agent) printf 'tidegate\n' ;;
    *) printf 'tidegate-%s\n' "$1" ;;
    esac
}

installed_roles() {
    local role
    for role in agent central; do
        [ ! -e "/etc/systemd/system/tidegate-$role.service" ] || printf '%s\n' "$role"
    done
}

# switch_to VERSION: from one moment to the next, never without a version.
switch_to() {
    [ "$(readlink "$opt/current")" != "$1" ] || return 0
    ln -sfn "$1" "$opt/.current" && mv -T "$opt/.current" "$opt/current"
}

# put_in_place VERSION ROLE: units, user, directories; what is the same already stays untouched.
put_in_place() {
    local from target user state
    while read -r from target; do
        make_folder "${target%/*}" || return 1
        cmp -s "$from" "$target" || install -m 644 "$from" "$target" || return 1
    done < <(files_of "$1" "$2")
    user=$(user_of "$2")
    state=/var/lib/$user
    if ! id "$user" >/dev/null 2>&1; then
        if command -v systemd-sysusers >/dev/null; then
            systemd-sysusers "/etc/sysusers.d/tidegate-$2.conf" || return 1
        else
            useradd --system --user-group --home-dir "$state" --no-create-home \
                --shell /usr/sbin/nologin "$user" || return 1
        fi
    fi
    install -d -m 750 -o "$user" -g "$user" "$state" || return 1
    # Kept by script/uninstall --keep-cache, or made by root before there was this user.
    if [ -n "$(find "$state" -maxdepth 2 ! -user "$user" -print -quit)" ]; then
        chown -R "$user:$user" "$state"
    fi
}

give_config() {
    local file=/etc/tidegate/$1.toml
    [ ! -e "$file" ] || return 0
    mkdir -p /etc/tidegate
    cat >"$file" <<END
# Tidegate's configuration (tidegate $1). Everything has a default: an empty file works.
# What may stand here: $opt/current/doc
END
}

# running_version UNIT VERSION: whether the unit's process runs this version.
running_version() {
    local pid
    pid=$(systemctl show --property MainPID --value "$1")
    [ "${pid:-0}" != 0 ] && grep -qsF "$2/" "/proc/$pid/cmdline" "/proc/$pid/maps"
}

# remove_unused VERSION: the others, but for those that a lingering process still runs.
remove_unused() {
    local other
    for other in "$opt"/*/; do
        other=${other%/}
        [ "$other" != "$1" ] && [ ! -L "$other" ] || continue
        grep -qsF "$other/" /proc/[0-9]*/maps || rm -rf "$other"
    done
}

# tidegate_says: whether it steers, and which daemons are to be restarted.
tidegate_says() {
    "$opt/current/bin/tidegate" status --json | "$opt/current/bin/python" -c '
import json, sys
status = json.load(sys.stdin)
steering = status["steering"]
print("pulls are cached" if steering["active"] else "pulls are not cached yet: " + steering["reason"])
todo = dict.fromkeys(each["action"] for each in status["trust"] if each["action"])
if todo:
    print("what ran already has not read its certificate; until it is restarted its pulls go on as before, uncached:")
    print("\n".join("  " + action for action in todo))
' 2>/dev/null || printf 'see what it does with: tidegate status\n'
}
