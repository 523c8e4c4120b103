//! The ways in which a process can make system calls, and their numbers.

use std::collections::HashMap;
use std::sync::LazyLock;

/// name x86_64 x32 x86 aarch64 arm
const TABLE: &str = include_str!("syscalls.txt");

/// An ABI. One kernel serves several: an x86_64 machine runs x86 programs, whose numbers mean other calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Abi {
    X86_64,
    /// x86_64's registers with 32-bit pointers: the same audit architecture, told apart by bit 30 of the number.
    X32,
    X86,
    Aarch64,
    Arm,
}

/// Set in the numbers of x32's calls.
pub const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    /// What this agent was compiled for.
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// As profiles' architectures are named.
    pub fn by_profile_name(name: &str) -> Option<Self> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X32" => Some(Self::X32),
            "SCMP_ARCH_X86" => Some(Self::X86),
            "SCMP_ARCH_AARCH64" => Some(Self::Aarch64),
            "SCMP_ARCH_ARM" => Some(Self::Arm),
            _ => None,
        }
    }

    /// As profiles' `arches` name a machine (Go's names).
    pub fn is_called(self, name: &str) -> bool {
        match self {
            Self::X86_64 => name == "amd64",
            Self::X32 => name == "x32",
            Self::X86 => name == "x86" || name == "386",
            Self::Aarch64 => name == "arm64",
            Self::Arm => name == "arm",
        }
    }

    /// Whether a machine of this ABI runs programs of that one.
    pub fn runs(self, other: Self) -> bool {
        matches!((self, other), (Self::X86_64, Self::X32 | Self::X86) | (Self::Aarch64, Self::Arm)) || self == other
    }

    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::X32 => 1,
            Self::X86 => 2,
            Self::Aarch64 => 3,
            Self::Arm => 4,
        }
    }

    /// The number of a call, x32's without its bit. `None`: this ABI has no such call, or it's newer than this agent.
    pub fn number(self, name: &str) -> Option<u32> {
        static NUMBERS: LazyLock<HashMap<&str, [Option<u32>; 5]>> = LazyLock::new(|| TABLE.lines().filter_map(row).collect());
        NUMBERS.get(name).and_then(|row| row.get(self.column()).copied().flatten())
    }
}

fn row(line: &'static str) -> Option<(&'static str, [Option<u32>; 5])> {
    let mut words = line.split(' ').filter(|_| !line.starts_with('#'));
    let name = words.next()?;
    let mut numbers = [None; 5];
    for (slot, word) in numbers.iter_mut().zip(words) {
        *slot = word.parse().ok();
    }
    Some((name, numbers))
}
