//! `schema`: the scenario language as a JSON Schema.

use crate::say;

/// The schema is JSON with and without `--json`.
pub(super) fn run() -> u8 {
    let schema = vsc::scenario::schema::schema();
    say::out(&(serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"));
    0
}
