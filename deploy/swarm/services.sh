# The services of the stack as the Swarm has them: their tasks, waiting for them, their spread. Sourced by stack.sh, never run.
# shellcheck shell=bash

service_exists() { docker service inspect "${STACK}_$1" >/dev/null 2>&1; }
# spec SERVICE TEMPLATE
spec() { docker service inspect --format "$2" "${STACK}_$1" 2>/dev/null; }
update_state() { spec "$1" '{{with .UpdateStatus}}{{.State}} {{.StartedAt.Format "2006-01-02T15:04:05"}}{{end}}' || true; }
image_of() { spec "$1" '{{.Spec.TaskTemplate.ContainerSpec.Image}}'; }

# The name of the API that nginx sends requests to: of one colour or the other.
live_api() { spec nginx '{{range .Spec.TaskTemplate.ContainerSpec.Env}}{{println .}}{{end}}' | sed -n 's/^API_NAME=//p'; }

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
