// @ts-check
// Where the server is, seen from the page. The page lies beside the server's routes, or in a folder there, and a proxy may serve both
// below a path.

/** Returns the address of a route of the server, relative to the page. @param {string} route */
export const ofServer = (route) => `${globalThis.document?.documentElement?.dataset.server ?? ''}${route}`;
