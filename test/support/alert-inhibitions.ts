export type Labels = Readonly<Record<string, string>>;

const replica = { job: 'api', instance: '10.0.0.1:3000' };

/** An alert; those that only repeat it; and some that people have to be told all the same. */
export const inhibitions: readonly (readonly [
  cause: Labels,
  held: readonly Labels[],
  told: readonly Labels[],
])[] = [
  [
    { alertname: 'BrokerTargetDown', severity: 'warning', ...replica },
    [
      { alertname: 'BrokerMemoryHigh', severity: 'warning', service: 'api', ...replica },
      { alertname: 'BrokerCpuHigh', severity: 'warning', service: 'api', ...replica },
      { alertname: 'BrokerHealthFailing', severity: 'warning', check: 'database', ...replica },
    ],
    [
      {
        alertname: 'BrokerMemoryHigh',
        severity: 'warning',
        job: 'api',
        instance: '10.0.0.2:3000',
      },
      { alertname: 'BrokerNoLeader', severity: 'critical' },
    ],
  ],
  [
    { alertname: 'BrokerServiceDown', severity: 'critical', job: 'reaper' },
    [
      {
        alertname: 'BrokerTargetDown',
        severity: 'warning',
        job: 'reaper',
        instance: '10.0.0.7:9402',
      },
      { alertname: 'BrokerNoLeader', severity: 'critical' },
      { alertname: 'BrokerDutyNotRun', severity: 'warning', source: 'leader', duty: 'reap' },
    ],
    [{ alertname: 'BrokerTargetDown', severity: 'warning', ...replica }],
  ],
  [
    { alertname: 'BrokerNoLeader', severity: 'critical' },
    [
      {
        alertname: 'BrokerOldestWaiting',
        severity: 'warning',
        source: 'leader',
        topic: 'orders',
      },
      { alertname: 'BrokerPartitionsNotAhead', severity: 'critical', source: 'leader' },
    ],
    [
      { alertname: 'BrokerDeliveryErrorsHigh', severity: 'warning', subscription: 'billing' },
      { alertname: 'BrokerTwoLeaders', severity: 'critical' },
    ],
  ],
  [
    { alertname: 'BrokerDatabaseDown', severity: 'critical', instance: '10.0.0.9:9187' },
    [
      { alertname: 'BrokerDatabaseUnavailable', severity: 'critical' },
      { alertname: 'BrokerRequestErrorsHigh', severity: 'critical' },
      { alertname: 'BrokerPublishBudgetBurn', severity: 'critical', slo: 'publish' },
      { alertname: 'BrokerUnreachable', severity: 'critical', instance: '10.0.1.1' },
      { alertname: 'BrokerNoLeader', severity: 'critical' },
    ],
    [
      { alertname: 'BrokerAckBudgetBurn', severity: 'critical', slo: 'ack' },
      { alertname: 'BrokerDiskAlmostFull', severity: 'critical', instance: '10.0.2.1:9100' },
    ],
  ],
  [
    { alertname: 'BrokerCertificateExpiring', severity: 'critical', instance: '10.0.1.1' },
    [{ alertname: 'BrokerCertificateExpiring', severity: 'warning', instance: '10.0.1.1' }],
    [{ alertname: 'BrokerCertificateExpiring', severity: 'warning', instance: '10.0.1.2' }],
  ],
  [
    { alertname: 'BrokerPublishBudgetBurn', severity: 'critical', slo: 'publish' },
    [{ alertname: 'BrokerPublishBudgetBurn', severity: 'warning', slo: 'publish' }],
    [{ alertname: 'BrokerAckBudgetBurn', severity: 'warning', slo: 'ack' }],
  ],
  [
    {
      alertname: 'BrokerDiskAlmostFull',
      severity: 'critical',
      instance: '10.0.2.1:9100',
      mountpoint: '/',
    },
    [
      {
        alertname: 'BrokerDiskFillsUp',
        severity: 'warning',
        instance: '10.0.2.1:9100',
        mountpoint: '/',
      },
    ],
    [
      {
        alertname: 'BrokerDiskFillsUp',
        severity: 'warning',
        instance: '10.0.2.1:9100',
        mountpoint: '/srv',
      },
    ],
  ],
];
