//! Shapes of real programs: network set-up by many tasks in many namespaces, half of it
//! given up on the way.

mod kata;
