//! `vsc-run delete NAME`.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vsc::store::{Name, StoreError};

use super::super::Common;
use super::{StoreArgs, answer, failed};

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// The saved VM.
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Also deletes the disk images that were made for it, and whatever else is in its directory.
    #[arg(long)]
    disks: bool,
}

pub(in crate::cli) fn delete(args: &DeleteArgs, common: &Common) -> u8 {
    match remove(args) {
        Ok(disks) => {
            let mut text = format!("{} is deleted\n", args.name);
            for disk in &disks {
                text += &format!("{} is deleted\n", disk.display());
            }
            answer(common, &json!({"name": args.name, "deleted": disks}), &text);
            0
        }
        Err(e) => failed(&e),
    }
}

fn remove(args: &DeleteArgs) -> Result<Vec<PathBuf>, StoreError> {
    let name = Name::existing(&args.name)?;
    args.store.open(None)?.delete(&name, args.disks)
}
