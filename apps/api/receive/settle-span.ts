import { messagingAttributes } from '#runtime/messaging-spans.ts';
import { type Spanned, withSpan } from '#runtime/tracing.ts';

/** The span of a request of a consumer. Lease ids do not tell the traces of their events: who calls may bring its own. */
export function withSettleSpan<Result>(
  of: {
    readonly operation: 'ack' | 'nack' | 'extend';
    readonly subscription: string;
    readonly messages: number;
  },
  run: () => Promise<Result>,
): Promise<Result> {
  const { operation, subscription: destination, messages } = of;
  const settleSpan = (): Spanned => ({
    kind: 'client',
    attributes: messagingAttributes({ operation, type: 'settle', destination, messages }),
  });
  return withSpan(`${operation} ${destination}`, settleSpan, run);
}
