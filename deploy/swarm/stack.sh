# What the commands of this folder share: settings, checks, the rendered stack, waiting. Sourced by them, never run.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
STACK=${STACK:-broker}
ENV_FILE=${ENV_FILE:-$top/.env.prod}
WAIT_SECONDS=${WAIT_SECONDS:-600}
# how long a command that does not ask waits for another one to end
LOCK_SECONDS=${LOCK_SECONDS:-300}
# `never` for hosts that reach no registry and have the images already
RESOLVE_IMAGE=${RESOLVE_IMAGE:-always}
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
    [[ -v $name ]] || export "$name=$value"
  done <"$ENV_FILE"
  [[ -n ${BROKER_IMAGE:-} ]] || fail "BROKER_IMAGE is not set: put it into $ENV_FILE"
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
  local control
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

service_exists() { docker service inspect "${STACK}_$1" >/dev/null 2>&1; }
# spec SERVICE TEMPLATE
spec() { docker service inspect --format "$2" "${STACK}_$1" 2>/dev/null; }
update_state() { spec "$1" '{{with .UpdateStatus}}{{.State}} {{.StartedAt.Format "2006-01-02T15:04:05"}}{{end}}' || true; }
image_of() { spec "$1" '{{.Spec.TaskTemplate.ContainerSpec.Image}}'; }

# outdated SERVICE: how many of its running tasks are not what it says now. Swarm has no state of an update in the first
# moment, so that it cannot be told from one that is over by its state alone.
outdated() {
  local wanted
  # empty in the service, and not there in its tasks
  wanted=$(spec "$1" '{{json .Spec.TaskTemplate.ContainerSpec}}{{.Spec.TaskTemplate.ForceUpdate}}' | sed 's/"DNSConfig":{},//')
  docker service ps --quiet --no-trunc --filter desired-state=running "${STACK}_$1" |
    xargs -r docker inspect --type task --format '{{json .Spec.ContainerSpec}}{{.Spec.ForceUpdate}}' 2>/dev/null |
    grep -cvxF -- "$wanted" || true
}

# The hosts that nginx is to run on.
edge_hosts() {
  local not
  not=$(docker node ls --filter node.label=edge=no --format '{{.ID}}')
  docker node ls --format '{{.ID}} {{.Status}} {{.Availability}} {{.Hostname}}' |
    NOT=$not awk '$2 == "Ready" && $3 == "Active" && index(ENVIRON["NOT"], $1) == 0 { print $4 }'
}

# counts SERVICE: running and wanted replicas, as "3/3". Counted from its tasks: Swarm's own figures have those of a host that is down
# still running, and of a service on each host leave out those that wait for their next start.
counts() {
  local wanted
  wanted=$(spec "$1" '{{with .Spec.Mode.Replicated}}{{.Replicas}}{{end}}{{with .Spec.Mode.ReplicatedJob}}{{.TotalCompletions}}{{end}}') || return 0
  [[ $1 != nginx ]] || wanted=$(edge_hosts | wc -l)
  echo "$(tasks "$1" | awk -F'|' '$2 == "Running" && $3 ~ /^Running/' | wc -l)/$wanted"
}

# tasks SERVICE: node, wanted state, state and error of each task, newest first
tasks() { docker service ps --no-trunc --format '{{.Node}}|{{.DesiredState}}|{{.CurrentState}}|{{.Error}}' "${STACK}_$1" 2>/dev/null; }

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

# Prints what the last tasks of a service died of, and the last lines of the one that did so last (else of them all).
explain() {
  local failed
  tasks "$1" | awk -F'|' '$4 != "" && !seen[$4]++ {print "  " $1 ": " $4}' | head -5
  failed=$(docker service ps --quiet --no-trunc "${STACK}_$1" | xargs -r docker inspect --type task --format '{{.ID}} {{.Status.State}}' 2>/dev/null |
    awk '$2 == "failed" && !n++ {print $1}') || true
  timeout 10 docker service logs --raw --tail 15 "${failed:-${STACK}_$1}" 2>&1 | sed 's/^/  | /' || true
}

# wait_for SINCE SERVICE…: until every service runs what it should; fails when Swarm went back to the version before.
# SINCE: `now` of before the change, so that an older update is not taken for this one.
wait_for() {
  local since=$1 seconds=${wait_seconds:-$WAIT_SECONDS} end last='' line name state startedAt count pending bad stopped
  end=$((SECONDS + seconds))
  shift
  while :; do
    line='' pending='' bad='' stopped=''
    for name in "$@"; do
      count=$(counts "$name")
      read -r state startedAt <<<"$(update_state "$name")"
      [[ $startedAt < $since ]] && state=''
      line+="  $name ${count:-0/?}${state:+ $state}"
      case $state in
      updating | rollback_started) pending=1 ;;
      rollback_completed) bad+=" $name" ;;
      paused | rollback_paused) stopped+=" $name" ;;
      esac
      [[ -n $count && ${count%/*} == "${count#*/}" && $(outdated "$name") == 0 ]] || pending=1
      # An update is judged by Swarm; what starts for the first time is judged here.
      if [[ -z $state && ${count%/*} == 0 && $(failures "$name" "$since") -ge 3 ]]; then
        explain "$name"
        fail "$name does not start (see above); Swarm goes on trying"
      fi
    done
    [[ $line == "$last" ]] || say "$line"
    last=$line
    [[ -z $stopped ]] || {
      for name in $stopped; do explain "$name"; done
      fail "the update stopped, and Swarm leaves it as it is (see above). Mend what is said there, and deploy:$stopped"
    }
    [[ -n $pending ]] || break
    ((SECONDS < end)) || {
      for name in "$@"; do explain "$name"; done
      fail "not there after $seconds s; 'docker service ps ${STACK}_SERVICE' shows the tasks"
    }
    sleep 1
  done
  [[ -z $bad ]] || {
    for name in $bad; do explain "$name"; done
    fail "the new version did not hold; Swarm went back to the one before:$bad"
  }
}

# failures SERVICE SINCE: how many of its tasks that were made since then have failed
failures() {
  docker service ps --quiet --no-trunc "${STACK}_$1" | xargs -r docker inspect --type task --format '{{.CreatedAt.Format "2006-01-02T15:04:05"}} {{.Status.State}}' 2>/dev/null |
    awk -v since="$2" '$1 >= since && ($2 == "failed" || $2 == "rejected")' | wc -l
}

now() { date -u +%Y-%m-%dT%H:%M:%S; }

job_iteration() { spec "$1" '{{.JobStatus.JobIteration.Index}}' || true; }

# job_task SERVICE ITERATION: id and state of its task
job_task() {
  docker service ps --quiet --no-trunc "${STACK}_$1" |
    xargs -r docker inspect --type task --format '{{.JobIteration.Index}} {{.ID}} {{.Status.State}} {{.Status.Err}}' |
    awk -v n="$2" '$1 == n {sub(/^[^ ]+ /, ""); print}'
}

# The words of a task that was one of ours: the messages of JSON lines, other lines as they are.
words_of_task() {
  timeout 10 docker service logs --raw "$1" 2>&1 |
    sed 's/^{.*"msg":"\([^"]*\)".*/\1/; /^stopp/d; /^$/d; s/^/  /' | tail -15 || true
}

# run_job WORKDIR SERVICE: a one-shot of the stack, with the image and the settings as they are now, to its end; 1 when it fails.
run_job() {
  local file=$1/$2.yml name=$2 before iteration task='' state='' error='' end=$((SECONDS + WAIT_SECONDS))
  before=$(job_iteration "$name")
  render "$file" "$name"
  # a setting for this run alone, as "NAME: value"
  [[ -z ${JOB_ENVIRONMENT:-} ]] || sed -i "s|^    environment:|&\n      $JOB_ENVIRONMENT|" "$file"
  apply "$file" || return 1
  iteration=$(job_iteration "$name")
  if [[ -n $before && $before == "$iteration" ]]; then
    # Nothing in it changed, so Swarm did not run it again.
    docker service update --detach --force "${STACK}_$name" >/dev/null || return 1
    iteration=$(job_iteration "$name")
  fi
  while [[ $state != complete ]]; do
    read -r task state error <<<"$(job_task "$name" "$iteration")"
    case $state in
    failed | rejected | orphaned)
      words_of_task "$task"
      say "  $name: $error"
      return 1
      ;;
    esac
    ((SECONDS < end)) || {
      [[ -z $task ]] || words_of_task "$task"
      say "  $name has not ended after $WAIT_SECONDS s (${state:-no task yet}) $error"
      return 1
    }
    [[ $state == complete ]] || sleep 1
  done
  words_of_task "$task"
}

# The login roles of the database, as the secrets name them.
run_roles() {
  [[ ${POSTGRES_REPLICAS:-1} == 1 ]] || return 0
  say 'Roles of the database'
  run_job "$1" roles
}

# Migrates, and checks the connections of all replicas against the database.
run_migrate() {
  say 'Migrating'
  run_job "$1" migrate
}

# How many running tasks of SERVICE each ready host has, fewest first; hosts that have none are counted.
spread() {
  {
    docker node ls --format '{{.Hostname}} {{.Status}} {{.Availability}}' | awk '$2 == "Ready" && $3 == "Active" {print $1, 0}'
    tasks "$1" | awk -F'|' '$2 == "Running" && $3 ~ /^Running/ {print $1, 1}'
  } | awk '{n[$1] += $2} END {for (host in n) print n[host], host}' | sort -n
}

# Replicas that start before the old ones end are placed while those still count, so that updates pile them up on some hosts.
# More of them fill the emptiest hosts, and what is too many goes from the fullest.
even_out() {
  local name=$1 counts_now least most replicas held wait_seconds=120
  # where hosts have zones, replicas are spread over those
  [[ -z $(docker node ls --filter node.label=zone --quiet) ]] || return 0
  for _ in 1 2 3; do
    counts_now=$(spread "$name")
    least=$(head -1 <<<"$counts_now" | cut -d' ' -f1)
    most=$(tail -1 <<<"$counts_now" | cut -d' ' -f1)
    ((most - least > 1)) || return 0
    replicas=$(spec "$name" '{{.Spec.Mode.Replicated.Replicas}}')
    say "Spreading $name again: $(tr '\n' ',' <<<"$counts_now" | sed 's/,$//; s/,/, /g')"
    docker service scale --detach "${STACK}_$name=$((replicas + most - least - 1))" >/dev/null
    # where there is no room for one more the deployment is good all the same
    held=1
    (
      trap - EXIT ERR
      wait_for "$(now)" "$name"
    ) || held=0
    docker service scale --detach "${STACK}_$name=$replicas" >/dev/null
    wait_for "$(now)" "$name"
    ((held)) || {
      say "$name stays as it is: one replica more found no room"
      return 0
    }
  done
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
