//! What keeps a job in its place, and what becomes of one that leaves it.

mod abuse;
mod escapes;
mod rayon;
mod tokio;
