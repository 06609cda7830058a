//! The words of the specification.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An enumeration that later versions of the specification may add to.
macro_rules! open_words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$meaning])* $variant,)*
            /// A word that this program does not know.
            Other(String),
        }

        impl $name {
            /// The words that this program knows.
            pub const KNOWN: &[&str] = &[$($word),*];

            /// The word.
            pub fn as_str(&self) -> &str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => $name::$variant,)*
                    other => $name::Other(other.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&crate::diag::shown(self.as_str()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok($name::from(&*String::deserialize(deserializer)?))
            }
        }
    };
}

open_words! {
    /// `FirmwareFeature`: what a firmware can do, and what it needs.
    Feature {
        /// Sleep in RAM.
        AcpiS3 = "acpi-s3",
        /// Sleep on disk.
        AcpiS4 = "acpi-s4",
        /// Runs under AMD SEV.
        AmdSev = "amd-sev",
        /// Runs under AMD SEV-ES.
        AmdSevEs = "amd-sev-es",
        /// Runs under AMD SEV-SNP.
        AmdSevSnp = "amd-sev-snp",
        /// Runs under Intel TDX.
        IntelTdx = "intel-tdx",
        /// The variable template has Secure Boot on, and certificates.
        EnrolledKeys = "enrolled-keys",
        /// Needs System Management Mode.
        RequiresSmm = "requires-smm",
        /// Implements Secure Boot.
        SecureBoot = "secure-boot",
        /// Needs a variable store that the monitor keeps.
        QemuVars = "qemu-vars",
        /// Logs much when somebody listens at port 0x402.
        VerboseDynamic = "verbose-dynamic",
        /// Logs much, always.
        VerboseStatic = "verbose-static",
    }
}

open_words! {
    /// `FirmwareOSInterface`: what a firmware offers to the guest's system.
    Interface {
        /// Traditional x86 BIOS.
        Bios = "bios",
        /// IEEE 1275.
        OpenFirmware = "openfirmware",
        /// U-Boot.
        Uboot = "uboot",
        /// UEFI.
        Uefi = "uefi",
    }
}

/// An enumeration that is complete: another word makes a descriptor useless.
macro_rules! closed_words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$meaning])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// All words.
            pub const KNOWN: &[&str] = &[$($word),*];

            /// The word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }

            /// What a word stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some($name::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_words! {
    /// `FirmwareDevice`: how a machine gets the executable.
    Device {
        /// In a flash chip.
        Flash = "flash",
        /// Like a Linux kernel.
        Kernel = "kernel",
        /// In memory, read-only.
        Memory = "memory",
    }
}

closed_words! {
    /// `FirmwareFlashMode`: where variables are kept.
    Mode {
        /// In a second chip, which starts as a copy of the template.
        Split = "split",
        /// In the same file, which is copied for each machine.
        Combined = "combined",
        /// Nowhere.
        Stateless = "stateless",
    }
}

closed_words! {
    /// `FirmwareFormat`: the format of an image.
    Format {
        /// Bytes as they are.
        Raw = "raw",
        /// QEMU's format.
        Qcow2 = "qcow2",
    }
}
