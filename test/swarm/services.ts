/** How an update ended or where it stands, in Docker's words; `none`: there was no update yet. */
export type UpdateState =
  | 'none'
  | 'updating'
  | 'paused'
  | 'completed'
  | 'rollback_started'
  | 'rollback_paused'
  | 'rollback_completed';

export interface ServiceState {
  /** With the stack's name before it. */
  readonly name: string;
  readonly image: string;
  readonly running: number;
  readonly wanted: number;
  /** Of a job: it is done. */
  readonly isDone: boolean;
  readonly update: UpdateState;
}

interface ListedService {
  readonly Name: string;
  readonly Image: string;
  /** `3/3`, `3/3 (max 1 per node)`, and of a job `0/1 (1/1 completed)`. */
  readonly Replicas: string;
}

interface InspectedService {
  readonly Spec: { readonly Name: string };
  readonly UpdateStatus?: { readonly State?: UpdateState };
}

/** Puts together what `docker stack services --format json` and `docker service inspect` say. */
export function servicesFrom(listed: string, inspected: string): ServiceState[] {
  const details = JSON.parse(inspected) as InspectedService[];
  return listed.split('\n').map((line) => {
    const { Name: name, Image: image, Replicas } = JSON.parse(line) as ListedService;
    const [, running, wanted] = /^(\d+)\/(\d+)/.exec(Replicas) ?? [];
    const [, completed, total] = /\((\d+)\/(\d+) completed\)/.exec(Replicas) ?? [];
    if (running === undefined) throw new Error(`${name}: replicas are said to be ${Replicas}`);
    const own = details.find(({ Spec }) => Spec.Name === name);
    return {
      name,
      image,
      running: Number(running),
      wanted: Number(wanted),
      isDone: completed !== undefined && completed === total,
      update: own?.UpdateStatus?.State ?? 'none',
    };
  });
}

/** Whether something is still on its way. */
export function notSettled({ running, wanted, isDone, update }: ServiceState): boolean {
  if (update === 'updating' || update === 'rollback_started') return true;
  return !isDone && running !== wanted;
}
