import Type from 'typebox';
import { problemCodes } from '../problem-codes.ts';

/** RFC 9457, with a stable code. */
export const ProblemSchema = Type.Object(
  {
    type: Type.String({ description: 'urn:problem-type:event-broker:<code>' }),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.Optional(Type.String()),
    instance: Type.Optional(Type.String()),
    code: Type.Enum([...problemCodes], { description: 'What programs look at; it never changes.' }),
    request_id: Type.String(),
    errors: Type.Optional(
      Type.Array(
        Type.Object({
          detail: Type.String(),
          pointer: Type.Optional(
            Type.String({ description: "RFC 6901 into the body; '' is all of it." }),
          ),
          parameter: Type.Optional(Type.String({ description: 'Of the path or the query.' })),
        }),
      ),
    ),
  },
  { $id: 'Problem' },
);
