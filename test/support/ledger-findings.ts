/** What no broker that keeps its promises lets happen. */
export type ViolationKind =
  /** Answered with 202, or stored, and not delivered to a subscription, nor a dead letter there. */
  | 'lost'
  /** Delivered, but never acknowledged, nor a dead letter, nor delivered again. */
  | 'vanished'
  /** Delivered, and never published, or only by requests that were answered as if nothing had happened. */
  | 'unexpected'
  /** Delivered again while the lease before could not have run out and nobody had given it back. */
  | 'unexplained_duplicate'
  /** An attempt that nobody saw, and no answer was lost that it could have been in. */
  | 'unexplained_attempt'
  /** An ack succeeded that was sent when a newer lease of the event had been received. */
  | 'stale_ack'
  /** An ack succeeded, and the event was handed out under a newer lease all the same. */
  | 'ack_undone'
  /** A lease was called lost while it could not have run out and nobody had settled it. */
  | 'lease_lost_early'
  /** The broker wrote down that it acked a push that no endpoint had accepted. */
  | 'false_ack'
  /** More than one lease of a push was written down as the last of its event. */
  | 'settled_twice'
  | 'attempts_exceeded'
  | 'key_stored_twice'
  /** An answer that no caller should ever get. */
  | 'defect';

export interface Violation {
  readonly kind: ViolationKind;
  readonly detail: string;
}

export type DuplicateReason =
  | 'the lease ran out'
  | 'nacked'
  | 'accepted, and the worker lost its lease before it was acked'
  | 'accepted, and released by a worker that stopped'
  | 'accepted, and the answer was lost or too late'
  | 'the outcome of the publish was unknown, and it was repeated without a key';
