use std::io;
use std::path::PathBuf;

/// Why an initrd cannot be built. Each names the file or the name that is in the way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More symbolic links than the kernel follows.
    #[error("Too many symbolic links in {}", path.display())]
    Links {
        /// The path.
        path: PathBuf,
    },
    /// A device, a socket or a FIFO where a file or a directory is needed.
    #[error("{} is not a file or directory", path.display())]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// A file that the archive format cannot hold: its sizes have 32 bits.
    #[error("{} is larger than the 4 GiB that an initrd can hold", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Two different things at one place of the archive.
    #[error("{} would be in the initrd twice, as different things", path.display())]
    Conflict {
        /// The path in the archive.
        path: PathBuf,
    },
    /// A program that is in none of the directories searched.
    #[error("Cannot find the program {name} in {searched}")]
    NoProgram {
        /// The program.
        name: String,
        /// The directories, as in `PATH`.
        searched: String,
    },
    /// A file that is neither an ELF program nor a script.
    #[error("{} is neither an ELF program nor a script (#!)", path.display())]
    NotAProgram {
        /// The file.
        path: PathBuf,
    },
    /// An ELF file that contradicts itself.
    #[error("{} is a broken ELF file: {reason}", path.display())]
    BrokenElf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// An ELF file for another kind of machine.
    #[error("{} is not for x86-64 Linux", path.display())]
    OtherMachine {
        /// The file.
        path: PathBuf,
    },
    /// A shared library that nothing provides.
    #[error("Cannot find the library {name}, which {} needs", needed_by.display())]
    NoLibrary {
        /// The library.
        name: String,
        /// The file that names it.
        needed_by: PathBuf,
    },
    /// An interpreter that does not exist.
    #[error("Cannot find the interpreter {}, which {} needs", interpreter.display(), needed_by.display())]
    NoInterpreter {
        /// The interpreter.
        interpreter: PathBuf,
        /// The file that names it.
        needed_by: PathBuf,
    },
    /// A script whose interpreter is a script, and so on for ever.
    #[error("Too many interpreters for {}", path.display())]
    Interpreters {
        /// The script.
        path: PathBuf,
    },
    /// A file that is not a Linux kernel for x86, or does not tell its version.
    #[error("{} is not a Linux kernel that tells its version", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// No kernel image was found.
    #[error("Cannot find a kernel (vmlinuz-*) in {}", path.display())]
    NoKernel {
        /// The directory.
        path: PathBuf,
    },
    /// No modules for this kernel.
    #[error("Cannot find the modules of kernel {version} in {searched}")]
    NoModules {
        /// The kernel's version.
        version: String,
        /// The directories, separated by commas.
        searched: String,
    },
    /// Modules for another kernel.
    #[error("{} is for kernel {found}, not for {wanted}", path.display())]
    ModuleMismatch {
        /// The module or the modules' directory.
        path: PathBuf,
        /// Its kernel.
        found: String,
        /// The kernel it was wanted for.
        wanted: String,
    },
    /// A module that the kernel does not have.
    #[error("Kernel {version} has no module {name}{}", suggest(nearest))]
    NoModule {
        /// The module.
        name: String,
        /// The kernel's version.
        version: String,
        /// The names most like it.
        nearest: Vec<String>,
    },
    /// A module that depends on itself.
    #[error("Module {name} depends on itself")]
    ModuleLoop {
        /// The module.
        name: String,
    },
    /// A file that is not a module, or not compressed as its name says.
    #[error("{} is not a kernel module: {reason}", path.display())]
    BrokenModule {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A command that cannot be handed to the guest.
    #[error("Cannot hand the command to the guest")]
    Spec(#[from] crate::init::SpecError),
    /// A command without a first word.
    #[error("There is no command to run")]
    NoCommand,
    /// The compressor failed.
    #[error("Cannot compress the initrd")]
    Compress(#[source] io::Error),
}

fn suggest(nearest: &[String]) -> String {
    if nearest.is_empty() {
        String::new()
    } else {
        format!("; the nearest: {}", nearest.join(", "))
    }
}
