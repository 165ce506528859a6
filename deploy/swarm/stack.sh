# What the commands of this folder share: settings, the lock, checks, the rendered stack. Sourced by them, never run.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=services.sh
. "$top/deploy/swarm/services.sh"
# shellcheck source-path=SCRIPTDIR source=jobs.sh
. "$top/deploy/swarm/jobs.sh"
STACK=${STACK:-broker}
ENV_FILE=${ENV_FILE:-$top/.env.prod}
WAIT_SECONDS=${WAIT_SECONDS:-600}
# how long a command that does not ask waits for another one to end
LOCK_SECONDS=${LOCK_SECONDS:-300}
# `always` would take a tag that was built again meanwhile for a new image, and restart PostgreSQL for it; `never` is for hosts
# that reach no registry and have the images already
RESOLVE_IMAGE=${RESOLVE_IMAGE:-changed}
secrets=(database_url_owner database_url_api database_url_worker database_url_monitor
  postgres_ca postgres_cert postgres_key admin_api_key secret_encryption_key tls_fullchain tls_privkey)

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# A command that fails where nothing else is said of it still ends with words.
set -E
trap '((BASH_SUBSHELL)) || printf "%s: stopped, because a command failed (see above). What was done until then stays: see deploy/swarm/status, and run this again\n" "${0##*/}" >&2' ERR

# What a command leaves to be removed: its folder, and its lock.
work='' lock=''
clean_up() {
  rm -rf "$work"
  [[ -z $lock ]] || docker config rm "$lock" >/dev/null 2>&1 || true
}
trap clean_up EXIT

# The words at the top of the calling script are its help.
usage() {
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
  exit "${1:-0}"
}

# Exports what ENV_FILE sets, as Compose and the containers read it; what the shell has already wins.
read_settings() {
  [[ -r $ENV_FILE ]] || fail "cannot read $ENV_FILE: make it with 'cp .env.example .env.prod' and set BROKER_IMAGE in it"
  [[ $STACK =~ ^[a-z0-9][a-z0-9_-]{0,40}$ ]] || fail "STACK is not a name: '$STACK'"
  ENV_FILE=$(realpath "$ENV_FILE")
  local line name value
  local -A lines=()
  while IFS= read -r line || [[ -n $line ]]; do
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    [[ $line != *$'\r' ]] || fail "$ENV_FILE has the line ends of Windows: sed -i 's/\r$//' $ENV_FILE"
    [[ $line =~ ^([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || fail "$ENV_FILE has a line that is not NAME=value: $line"
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    case $name in
    DATABASE_URL | DATABASE_DIRECT_URL | ADMIN_API_KEY | SECRET_ENCRYPTION_KEY)
      fail "$name is a secret: it belongs into a file of SECRETS_DIR, not into $ENV_FILE, where every container would show it"
      ;;
    esac
    [[ ! -v lines[$name] ]] || fail "$ENV_FILE sets $name twice"
    lines[$name]=1
    case $name in
    STACK | ENV_FILE | INSTANCE | API_KEY)
      fail "$name is nothing for $ENV_FILE: STACK and ENV_FILE come from the shell, each replica has an INSTANCE of its own, API_KEY is a secret"
      ;;
    SHUTDOWN_TIMEOUT_MS)
      [[ $value =~ ^([0-9]{1,4}|[12][0-9]{4}|3[0-3][0-9]{3}|34000)$ ]] || fail "SHUTDOWN_TIMEOUT_MS is not a number up to 34000: Swarm kills a replica 35 s after it told it to stop"
      ;;
    esac
    [[ $value != [\"\']* ]] || fail "$ENV_FILE has quotes around the value of $name: leave them out, the containers would get them too"
    [[ $value != *\$* && $value != *' #'* ]] || fail "$ENV_FILE has a \$ or a # in the value of $name, which Compose and Docker read in different ways: such a value belongs into a file of SECRETS_DIR, or is written another way"
    [[ -v $name ]] || export "$name=$value"
  done <"$ENV_FILE"
  [[ -n ${BROKER_IMAGE:-} ]] || fail "BROKER_IMAGE is not set: put it into $ENV_FILE"
  # without an API each nginx is stopped by its health check; without a reaper nothing is delivered again
  [[ ${API_REPLICAS:-3} != 0 && ${REAPER_REPLICAS:-2} != 0 ]] || fail 'API_REPLICAS and REAPER_REPLICAS are at least 1'
  SECRETS_DIR=${SECRETS_DIR:-./secrets}
  [[ $SECRETS_DIR == /* ]] || SECRETS_DIR=$top/${SECRETS_DIR#./}
  export STACK ENV_FILE SECRETS_DIR
}

no_blue_green() {
  [[ -z $(docker stack services --quiet "$STACK-green" 2>/dev/null) ]] ||
    fail "a blue-green deployment is under way: 'deploy/swarm/blue-green finish' or 'stop' first"
}

need_manager() {
  command -v docker >/dev/null || fail 'there is no docker command here'
  local control client
  client=$(docker version --format '{{.Client.Version}}' 2>/dev/null || true)
  [[ ! $client =~ ^([0-9]+)\. ]] || ((BASH_REMATCH[1] >= 26)) ||
    fail "the docker client is version $client, and 26 or newer is needed here ('docker stack deploy --detach'); the engines of the hosts may be older"
  control=$(docker info --format '{{.Swarm.ControlAvailable}}' 2>/dev/null) ||
    fail 'no Docker engine answers (is it running, and may you use it?)'
  [[ $control == true ]] || fail "this host is no manager of a Swarm: run it on one, or 'docker swarm init' first"
}

# One command at a time changes the stack: two would take what the other one does for their own. A name can be taken once in a
# Swarm, whichever host the other operator sits at. What a process of this host left, and is gone, is no lock.
take_lock() {
  local name=${STACK}_being_changed host user mine id holder tries=0 end=$((SECONDS + LOCK_SECONDS))
  host=$(docker info --format '{{.Swarm.NodeID}}')
  user=$(id -un)
  mine="${0##*/} by $user on $HOSTNAME ($host), process $$, since $(now) UTC"
  until docker config create --label "broker.changed.by=$mine" "$name" - <<<"$mine" >/dev/null 2>&1; do
    read -r id holder <<<"$(docker config inspect --format '{{.ID}} {{index .Spec.Labels "broker.changed.by"}}' "$name" 2>/dev/null || true)"
    # gone between the two looks: its holder has just ended
    if [[ -z $id ]] && ((++tries < 5)); then continue; fi
    [[ -n $id ]] || fail "the lock $name could not be made: has the Swarm a leader (docker node ls)?"
    if ! [[ $holder =~ " on $HOSTNAME ($host), process "([0-9]+), && ! -e /proc/${BASH_REMATCH[1]} ]]; then
      # whom nobody watches, such as the renewal of a certificate, can wait
      if [[ ${yes:-} == 1 ]] && ((SECONDS < end)); then
        sleep 2
        continue
      fi
      fail "the stack is being changed: $holder. When nobody does that any more: docker config rm $name"
    fi
    say "An earlier command was cut off: $holder"
    docker config rm "$id" >/dev/null 2>&1 || true
  done
  lock=$(docker config inspect --format '{{.ID}}' "$name")
}

# The names of secrets and configs of a stack carry a hash of the content: objects of Swarm cannot change.
hash_contents() {
  local name
  for name in "${secrets[@]}"; do
    [[ -s $SECRETS_DIR/$name ]] || fail "the secret $SECRETS_DIR/$name is missing or empty: deploy/swarm/make-secrets makes what is missing"
    export "HASH_${name^^}=$(sha256sum <"$SECRETS_DIR/$name" | cut -c1-10)"
  done
  HASH_NGINX=$(cd "$top/deploy/nginx" && cat start ./*.conf | sha256sum | cut -c1-10)
  HASH_POSTGRES=$(cd "$top/deploy/postgres" && cat start settings | sha256sum | cut -c1-10)
  HASH_ROLES=$(cd "$top/deploy/postgres" && cat roles roles.sql | sha256sum | cut -c1-10)
  export HASH_NGINX HASH_POSTGRES HASH_ROLES
}

# What the containers get of ENV_FILE: not what the stack's file takes itself, such as the number of replicas. Otherwise every
# replica would be replaced whenever one of those changes.
product_settings() {
  local taken
  # shellcheck disable=SC2016 # the text of the file, not ours
  taken=$(grep -o '\${[A-Z][A-Z0-9_]*' "$top/docker-compose.prod.yml" | tr -d '${' | sort -u)
  TAKEN=$taken awk -F= 'BEGIN { n = split(ENVIRON["TAKEN"], names, "\n"); for (i = 1; i <= n; i++) taken[names[i]] } !($1 in taken)' "$ENV_FILE"
}

# render FILE [SERVICE…]: the stack with all settings in place, of the named services alone when there are any.
render() {
  local file=$1 running
  shift
  # what rollback goes back to
  running=$(image_of api || true)
  IMAGE_BEFORE=$running
  [[ $running != "$BROKER_IMAGE" && ${running%@*} != "$BROKER_IMAGE" ]] || IMAGE_BEFORE=$(image_before)
  export IMAGE_BEFORE
  product_settings >"$file.env"
  ENV_FILE=$file.env docker stack config --compose-file "$top/docker-compose.prod.yml" >"$file.all" || fail 'docker-compose.prod.yml cannot be rendered (see above)'
  # What is read again is interpolated again.
  awk -v wanted=" $* " '
    /^[a-z]/ { top = $1; keep = 1 }
    top == "services:" && /^  [a-z]/ { name = $1; sub(":", "", name); keep = wanted == "  " || index(wanted, " " name " ") }
    keep { gsub(/\$/, "$$"); print }' "$file.all" >"$file"
  rm "$file.all"
}

image_before() { spec api '{{with index .Spec.Labels "broker.image.before"}}{{.}}{{end}}' || true; }

# For what must not bring another version on its way: the image is the one that runs, whatever .env.prod says.
keep_image() {
  service_exists api || fail "there is no stack '$STACK': deploy first"
  BROKER_IMAGE=$(image_of api)
  export BROKER_IMAGE
}

# write_setting NAME VALUE: into ENV_FILE, whole or not at all
write_setting() {
  cp -p "$ENV_FILE" "$ENV_FILE.new"
  NAME=$1 VALUE=$2 awk 'index($0, ENVIRON["NAME"] "=") == 1 { if (!done++) print ENVIRON["NAME"] "=" ENVIRON["VALUE"]; next } { print }
    END { if (!done) print ENVIRON["NAME"] "=" ENVIRON["VALUE"] }' "$ENV_FILE" >"$ENV_FILE.new"
  mv -f "$ENV_FILE.new" "$ENV_FILE"
}

# apply FILE [OPTION…]
apply() {
  local file=$1
  shift
  docker stack deploy --detach=true --with-registry-auth --resolve-image "$RESOLVE_IMAGE" "$@" --compose-file "$file" "$STACK" |
    sed 's/^/  /'
}

# The volume with the data is on one host. On another one PostgreSQL would begin with an empty database.
check_database_host() {
  local labelled before
  labelled=$(docker node ls --filter node.label=database=yes --format '{{.Hostname}}')
  [[ -n $labelled ]] ||
    fail "no host has the label database=yes, which says where PostgreSQL keeps its data: docker node update --label-add database=yes HOST"
  [[ $labelled != *$'\n'* ]] ||
    fail "several hosts have the label database=yes ($(tr '\n' ' ' <<<"$labelled")), and the data is on one: docker node update --label-rm database HOST"
  before=$(tasks postgres | awk -F'|' '$3 ~ /^(Running|Shutdown|Complete)/ && $1 != "" && !n++ {print $1}' || true)
  [[ -z $before || $before == "$labelled" || ${DATABASE_MOVED:-} == "$labelled" ]] ||
    fail "PostgreSQL has run on $before, where its data is, and the label database=yes is on $labelled. When the data is there now: DATABASE_MOVED=$labelled"
}

# check_key KEY CERTIFICATE: nginx and PostgreSQL do not start with a key of another certificate.
check_key() {
  [[ $(openssl x509 -in "$SECRETS_DIR/$2" -noout -pubkey) == $(openssl pkey -in "$SECRETS_DIR/$1" -pubout) ]] ||
    fail "$SECRETS_DIR/$1 does not fit $2"
}

need_programs() { # NAME…
  local name
  for name; do command -v "$name" >/dev/null || fail "there is no $name command here: apt-get install $name"; done
}

# A network that is there is not changed by a deployment, and the API would trust another one.
check_edge_subnet() {
  local now
  now=$(docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}}{{end}}' "${STACK}_edge" 2>/dev/null || true)
  [[ -z $now || $now == "${EDGE_SUBNET:-10.213.0.0/24}" ]] ||
    fail "EDGE_SUBNET is ${EDGE_SUBNET:-10.213.0.0/24}, and the network ${STACK}_edge has $now: it cannot be changed while the stack is there"
}

# PostgreSQL is stopped before a new one starts: what that would refuse is refused before.
check_postgres_settings() {
  local memory=${POSTGRES_MEMORY:-2G} number
  [[ $memory =~ ^[0-9]{1,6}[MG]$ ]] || fail "POSTGRES_MEMORY is not valid: '$memory' is not such as 512M or 2G"
  number=$((10#${memory%[MG]}))
  [[ $memory != *G ]] || number=$((number * 1024))
  sh "$top/deploy/postgres/settings" "$number" "${POSTGRES_MAX_CONNECTIONS:-200}" >/dev/null ||
    fail 'POSTGRES_MEMORY or POSTGRES_MAX_CONNECTIONS is not valid (see above)'
}

# Removes secrets and configs of the stack that neither a service nor its version before uses.
remove_unused() {
  local kind used name
  used=$(docker stack services --quiet "$STACK" | xargs docker service inspect --format '
{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{println .SecretName}}{{end}}{{range .Spec.TaskTemplate.ContainerSpec.Configs}}{{println .ConfigName}}{{end}}
{{with .PreviousSpec}}{{range .TaskTemplate.ContainerSpec.Secrets}}{{println .SecretName}}{{end}}{{range .TaskTemplate.ContainerSpec.Configs}}{{println .ConfigName}}{{end}}{{end}}')
  for kind in secret config; do
    for name in $(docker "$kind" ls --filter "label=com.docker.stack.namespace=$STACK" --format '{{.Name}}'); do
      grep -qxF "$name" <<<"$used" || docker "$kind" rm "$name" >/dev/null 2>&1 || true
    done
  done
}

confirm() { # QUESTION
  [[ ${yes:-} != 1 ]] || return 0
  [[ -t 0 ]] || fail 'not asked, because there is no terminal: say --yes'
  local answer
  read -r -p "$1 [y/N] " answer || true
  [[ $answer == [yY]* ]] || fail 'stopped; nothing was changed'
}
