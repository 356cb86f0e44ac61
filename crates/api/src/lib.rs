//! Wire types, routes as data and the typed client
