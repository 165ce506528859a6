import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, tmpdir, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { readProcessLimits } from '#runtime/process-limits.ts';

let root = '';
afterEach(async () => rm(root, { recursive: true, force: true }));

async function limitsWith(files: Readonly<Record<string, string>>) {
  root = await mkdtemp(join(tmpdir(), 'process-limits-'));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
  }
  return readProcessLimits(root);
}

const groups = 'sys/fs/cgroup';

test('of version 2: the least of the group and those around it', async () => {
  const limits = await limitsWith({
    'proc/self/cgroup': '0::/app/api\n',
    [`${groups}/app/api/memory.max`]: 'max\n',
    [`${groups}/app/memory.max`]: '134217728\n',
    [`${groups}/app/api/cpu.max`]: '50000 100000\n',
    [`${groups}/app/cpu.max`]: 'max 100000\n',
  });
  expect(limits).toEqual({ memoryBytes: 134_217_728, cpuCores: 0.5 });
});

test('in a container whose path is that of the host: what is at its root', async () => {
  const limits = await limitsWith({
    'proc/self/cgroup': '0::/../../docker/0123\n',
    [`${groups}/memory.max`]: '268435456\n',
    [`${groups}/cpu.max`]: '20000 100000\n',
  });
  expect(limits).toEqual({ memoryBytes: 268_435_456, cpuCores: 0.2 });
});

test('of version 1', async () => {
  const limits = await limitsWith({
    'proc/self/cgroup': '5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/x\n',
    [`${groups}/memory/memory.limit_in_bytes`]: '536870912\n',
    [`${groups}/cpu/docker/0123/cpu.cfs_quota_us`]: '75000\n',
    [`${groups}/cpu/docker/0123/cpu.cfs_period_us`]: '100000\n',
    [`${groups}/cpu/cpu.cfs_quota_us`]: '-1\n',
    [`${groups}/cpu/cpu.cfs_period_us`]: '100000\n',
  });
  expect(limits).toEqual({ memoryBytes: 536_870_912, cpuCores: 0.75 });
});

test('without a limit, or with one beyond the machine, it is the machine’s', async () => {
  const limits = await limitsWith({
    'proc/self/cgroup': '0::/\n9:memory:/\n',
    [`${groups}/memory.max`]: 'max\n',
    [`${groups}/memory/memory.limit_in_bytes`]: '9223372036854771712\n',
    [`${groups}/cpu.max`]: '10000000 100000\n',
  });
  expect(limits).toEqual({ memoryBytes: totalmem(), cpuCores: cpus().length });
});
