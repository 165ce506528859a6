import Type from 'typebox';

// What docker-compose.prod.yml and deploy/swarm read out of `.env.prod`. The containers get the same file, so a wrong or
// misspelt one stops them as any other does; but for the three numbers of replicas (migrate) no process uses them.

const image = { pattern: '^[a-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$' };
const memory = { pattern: '^[0-9]+[MG]$' };
const replicas = { minimum: 0, maximum: 1000 };

export const deploymentVariables = {
  BROKER_IMAGE: Type.String({
    ...image,
    shown: 'registry.example.com/event-broker:1.2.3@sha256:…',
    description:
      'The image of api, worker, reaper and migrate; with a digest, so that every host runs the same.',
  }),
  POSTGRES_IMAGE: Type.String({
    ...image,
    default: 'postgres:18.4',
    description: 'The image of PostgreSQL 18.',
  }),
  NGINX_IMAGE: Type.String({
    ...image,
    default: 'nginx:1.30',
    description: 'The image of nginx, 1.27.4 or newer.',
  }),
  SECRETS_DIR: Type.String({
    minLength: 1,
    default: './secrets',
    description: 'The folder of the files of secrets, on the host from which is deployed.',
  }),
  API_REPLICAS: Type.Integer({
    ...replicas,
    minimum: 1,
    shown: '3',
    description:
      'Replicas of the API; migrate checks the connections of all replicas against the database.',
  }),
  WORKER_REPLICAS: Type.Integer({
    ...replicas,
    shown: '3',
    description: 'Replicas of the worker.',
  }),
  REAPER_REPLICAS: Type.Integer({
    ...replicas,
    minimum: 1,
    shown: '2',
    description: 'Replicas of the reaper: one leads, the others stand by.',
  }),
  POSTGRES_REPLICAS: Type.Integer({
    minimum: 0,
    maximum: 1,
    default: 1,
    description:
      "1: PostgreSQL of the stack; 0: one elsewhere, that the secrets' database_url_… name.",
  }),
  API_MEMORY: Type.String({
    ...memory,
    default: '512M',
    description: 'Limit of each API replica.',
  }),
  WORKER_MEMORY: Type.String({ ...memory, default: '512M', description: 'Limit of each worker.' }),
  REAPER_MEMORY: Type.String({ ...memory, default: '256M', description: 'Limit of each reaper.' }),
  POSTGRES_MEMORY: Type.String({
    ...memory,
    default: '2G',
    description: 'Limit of PostgreSQL; its settings are made for it.',
  }),
  POSTGRES_MAX_CONNECTIONS: Type.Integer({
    minimum: 20,
    maximum: 5000,
    default: 200,
    description: 'max_connections of PostgreSQL.',
  }),
  RESTART_ATTEMPTS: Type.Integer({
    minimum: 1,
    maximum: 1_000_000,
    default: 10,
    description:
      'A task of a stack that ends within a minute of its start is started again so often; Compose on one host goes on.',
  }),
  EDGE_SUBNET: Type.String({
    check: 'cidr',
    default: '10.213.0.0/24',
    description:
      'The network of nginx and the API; what comes from it may name the client (TRUST_PROXY).',
  }),
  TLS: Type.Enum(['on', 'off'], {
    default: 'on',
    description: 'nginx: off where a balancer in front ends TLS.',
  }),
  ADMIN_ALLOW: Type.String({
    pattern: '^[0-9A-Fa-f.:/, ]+$|^all$',
    shown: '192.0.2.0/24',
    description:
      'nginx: addresses or CIDR ranges that may use the admin routes, with commas between; none without it; all: everybody.',
  }),
  TRUSTED_PROXIES: Type.String({
    pattern: '^[0-9A-Fa-f.:/, ]+$',
    shown: '198.51.100.7',
    description:
      'nginx: addresses or CIDR ranges of balancers in front whose X-Forwarded-For is believed.',
  }),
  ACME_THUMBPRINT: Type.String({
    pattern: '^[A-Za-z0-9_-]{43}$',
    shown: 'the-thumbprint-that-deploy-certificate-prints',
    description:
      "nginx: thumbprint of the ACME account that gets its certificates (Let's Encrypt).",
  }),
  CLIENT_REQUESTS_PER_SECOND: Type.Integer({
    minimum: 1,
    maximum: 1_000_000,
    default: 1000,
    description: 'nginx: requests per second of one client address; past it, and the burst, 429.',
  }),
  CLIENT_REQUESTS_BURST: Type.Integer({
    minimum: 1,
    maximum: 1_000_000,
    default: 2000,
    description: 'nginx: requests of one client address that may come at once.',
  }),
  CLIENT_CONNECTIONS_MAX: Type.Integer({
    minimum: 1,
    maximum: 65_535,
    default: 256,
    description: 'nginx: requests of one client address under way; past it 429.',
  }),
};
