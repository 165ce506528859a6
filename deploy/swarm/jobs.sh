# The one-shots of the stack, run to their end. Sourced by stack.sh, never run.
# shellcheck shell=bash

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
