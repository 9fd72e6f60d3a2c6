//! `bramble generate`: man pages and shell completions, made from the command line's own description.

use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use super::args::Cli;
use super::{Outcome, text};

/// The program's name.
const NAME: &str = "bramble";

pub(super) fn generate(man: Option<&Path>, completions: Option<&Path>) -> Outcome {
    if let Some(dir) = man {
        std::fs::create_dir_all(dir).map_err(text)?;
        clap_mangen::generate_to(visible(Cli::command()), dir).map_err(text)?;
    }
    if let Some(dir) = completions {
        std::fs::create_dir_all(dir).map_err(text)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut visible(Cli::command()), NAME, dir).map_err(text)?;
        }
    }
    Ok(())
}

/// Without what only other programs call.
fn visible(command: Command) -> Command {
    let hidden = |command: &Command| command.is_hide_set();
    let kept: Vec<Command> = command
        .get_subcommands()
        .filter(|sub| !hidden(sub))
        .cloned()
        .collect();
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .subcommands(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_a_completion() {
        let dir = tempfile::tempdir().unwrap();
        generate(Some(&dir.path().join("man")), Some(&dir.path().join("shells"))).unwrap();
        let shells = ["bramble.bash", "_bramble", "bramble.fish"];
        let shells =
            shells.map(|name| std::fs::read_to_string(dir.path().join("shells").join(name)).unwrap());
        for command in Cli::command().get_subcommands() {
            let page = dir.path().join(format!("man/bramble-{}.1", command.get_name()));
            assert_eq!(page.exists(), !command.is_hide_set(), "{}", page.display());
            for shell in &shells {
                assert_eq!(shell.contains(command.get_name()), !command.is_hide_set());
            }
        }
    }
}
