import Type, { type Static } from 'typebox';
import { logLevels, logLevelServices } from '#db/log-levels.ts';

export const LogLevelsSet = Type.Object(
  {
    service: Type.Optional(
      Type.Enum([...logLevelServices], {
        default: '*',
        description:
          "Processes of this kind ('standalone' is npm start); '*': all that have no level of their own here.",
      }),
    ),
    level: Type.Enum([...logLevels], {
      description: 'The least severe log lines that are written.',
    }),
    duration_seconds: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 86_400,
        default: 600,
        description: 'Then LOG_LEVEL holds again. 0 ends what was set before.',
      }),
    ),
  },
  { additionalProperties: false },
);
export type LogLevelsSet = Static<typeof LogLevelsSet>;

export const LogLevels = Type.Object({
  items: Type.Array(
    Type.Object({ service: Type.String(), level: Type.String(), until: Type.String() }),
    { description: 'What is set and has not ended; all other processes follow LOG_LEVEL.' },
  ),
});
