//! `edit`: a spec in the user's editor, and only what changed sent back.

use std::{io::Write, path::Path, process::Command};

use api::InstanceSpec;
use clap::Args;

use super::{
    list::find,
    set::{report, to_value},
};
use crate::cli::{
    Context, complete,
    exit::{Failure, Outcome},
    patch, yaml,
};

/// Flags of `edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// The instance
    #[arg(add = complete::instances())]
    name: String,
}

impl EditArgs {
    /// Opens the spec in an editor; applies what changed unless someone else changed it meanwhile.
    pub async fn run(self, cx: &Context) -> Outcome {
        let detail = find(cx, &self.name).await?;
        let before = to_value(&detail.spec)?;
        let name = &detail.instance.name;
        let header = format!(
            "# {name}: what is asked of it. Save and leave to apply; change nothing to leave it be.\n\
             # A field that is absent comes from the image or is the usual. See docs/cli.md.\n",
        );
        let mut file = tempfile::Builder::new()
            .prefix(&format!("berth-{name}-"))
            .suffix(".yaml")
            .tempfile()?;
        file.write_all(format!("{header}{}", yaml::write(&detail.spec)?).as_bytes())?;
        file.flush()?;
        open_editor(file.path())?;
        let text = std::fs::read_to_string(file.path())?;
        // Whatever goes wrong from here on, the user's work is not lost.
        let result = apply(cx, name, &text, &before, detail.generation).await;
        if let Err(failure) = result {
            let kept = file.into_temp_path().keep().map_err(|error| error.error)?;
            let hint = failure
                .hint()
                .map(|hint| format!("{hint}; "))
                .unwrap_or_default();
            let kept = format!("{hint}your text is kept in {}", kept.display());
            return Err(match failure {
                Failure::Client(_) | Failure::Said { .. } => failure.advise(kept),
                other => other,
            });
        }
        Ok(())
    }
}

async fn apply(
    cx: &Context,
    name: &str,
    text: &str,
    before: &serde_json::Value,
    generation: u64,
) -> Outcome {
    let spec: InstanceSpec =
        yaml::read(text).map_err(|why| Failure::usage(format!("this is not a spec: {why}")))?;
    let after = to_value(&spec)?;
    let change = patch::diff(before, &after);
    if change.as_object().is_some_and(serde_json::Map::is_empty) {
        cx.note("Nothing changed.");
        return Ok(());
    }
    let made = cx
        .client
        .set_instance(name, &change, Some(generation))
        .await?;
    report(cx, name, before, &to_value(&made.spec)?);
    cx.print(name)
}

/// Opens a file in `$VISUAL`, `$EDITOR` or vi, and waits until it is closed.
fn open_editor(path: &Path) -> Outcome {
    let set = |name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    let editor = set("VISUAL")
        .or_else(|| set("EDITOR"))
        .unwrap_or_else(|| "vi".into());
    // An editor may be set with flags, such as `code --wait`; the shell splits them as elsewhere.
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("{editor} \"$1\""), "berth-edit"])
        .arg(path)
        .status()
        .map_err(|error| {
            Failure::error(format!("the editor {editor:?} cannot be started: {error}"))
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::error(format!(
            "the editor {editor:?} ended with an error; nothing was changed"
        ))
        .advise("set EDITOR to the editor you like"))
    }
}
