use rstest::rstest;

use super::abi::Abi;
use super::compile::{AND, Insn, JA, JEQ, JGE, JGT, LD, RET, bytes, compile};
use super::profile::{Machine, Profile};
use super::*;
use crate::runtime::recipe::capabilities::{bit, default_set};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;

/// The kernel's machine, for the instructions that we use. Panics where the kernel would refuse the program.
fn run(program: &[Insn], arch: u32, nr: u32, args: &[u64]) -> u32 {
    let mut data = [nr, arch, 0, 0].map(u32::to_ne_bytes).concat();
    for n in 0..6 {
        data.extend(args.get(n).copied().unwrap_or_default().to_ne_bytes());
    }
    let (mut at, mut a) = (0_usize, 0_u32);
    for _ in 0..program.len() {
        let insn = program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { insn.jt } else { insn.jf });
        match insn.code {
            LD => a = u32::from_ne_bytes(data[insn.k as usize..][..4].try_into().unwrap()),
            AND => a &= insn.k,
            JA => at += insn.k as usize,
            JEQ => at += jump(a == insn.k),
            JGT => at += jump(a > insn.k),
            JGE => at += jump(a >= insn.k),
            RET => return insn.k,
            other => panic!("instruction {other:#x}"),
        }
    }
    panic!("no return")
}

fn machine(native: Abi) -> Machine {
    Machine { native, kernel: (6, 1) }
}

fn program(json: &str, native: Abi, capabilities: u64) -> Vec<Insn> {
    compile(&Profile::parse(json.as_bytes(), "test").unwrap().policy(machine(native), capabilities).unwrap()).unwrap()
}

fn ask(program: &[Insn], abi: Abi, name: &str, args: &[u64]) -> u32 {
    let bit = if abi == Abi::X32 { super::abi::X32_BIT } else { 0 };
    run(program, abi.audit(), abi.number(name).unwrap() | bit, args)
}

#[rstest]
#[case("read", &[], ALLOW)]
#[case("execve", &[], ALLOW)]
#[case("mount", &[], EPERM)]
#[case("unshare", &[0x1000_0000], EPERM)]
#[case("keyctl", &[], EPERM)]
#[case("bpf", &[], EPERM)]
#[case("io_uring_setup", &[], EPERM)]
#[case("clone", &[0x0120_0011], ALLOW)]
#[case("clone", &[0x1000_0000], EPERM)]
#[case("clone", &[0x4000_0011], EPERM)]
#[case("clone3", &[], ENOSYS)]
#[case("socket", &[2, 1], ALLOW)]
#[case("socket", &[40, 1], EPERM)]
#[case("personality", &[0], ALLOW)]
#[case("personality", &[0x20008], ALLOW)]
#[case("personality", &[0xffff_ffff], ALLOW)]
#[case("personality", &[0x004_0000], EPERM)]
#[case("personality", &[0x1_0000_0000], EPERM)]
#[case("chroot", &[], ALLOW)]
#[case("ptrace", &[], ALLOW)]
#[case("reboot", &[], EPERM)]
fn the_default_profile(#[case] name: &str, #[case] args: &[u64], #[case] expected: u32) {
    for (native, abi) in [
        (Abi::X86_64, Abi::X86_64),
        (Abi::X86_64, Abi::X86),
        (Abi::X86_64, Abi::X32),
        (Abi::Aarch64, Abi::Aarch64),
        (Abi::Aarch64, Abi::Arm),
    ] {
        let program = program(DEFAULT, native, default_set());
        if abi.number(name).is_some() {
            assert_eq!(ask(&program, abi, name, args), expected, "{name} on {abi:?}");
        }
    }
}

#[rstest]
#[case("SYS_ADMIN", "mount")]
#[case("SYS_ADMIN", "clone3")]
#[case("SYS_ADMIN", "setns")]
#[case("SYS_TIME", "settimeofday")]
#[case("SYS_PTRACE", "kcmp")]
#[case("SYS_BOOT", "reboot")]
#[case("BPF", "bpf")]
fn capabilities_open_what_they_are_for(#[case] capability: &str, #[case] name: &str) {
    let program = program(DEFAULT, Abi::X86_64, default_set() | bit(capability).unwrap());
    assert_eq!(ask(&program, Abi::X86_64, name, &[]), ALLOW);
}

#[test]
fn calls_from_elsewhere_are_not_answered() {
    let program = program(DEFAULT, Abi::X86_64, default_set());
    assert_eq!(run(&program, Abi::Aarch64.audit(), 1, &[]), KILL);
    assert_eq!(run(&program, Abi::X86_64.audit(), 9999, &[]), ENOSYS, "newer than the profile");
    assert!(program.len() < 1500, "{}", program.len());
    assert_eq!(bytes(&program).len(), program.len() * 8);
}

fn with_args(args: &str) -> Vec<Insn> {
    let json = format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{args}]}}]}}"#
    );
    program(&json, Abi::X86_64, 0)
}

const EDGES: [u64; 9] = [0, 1, 7, 8, 9, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0008, u64::MAX];

#[rstest]
#[case("EQ", |a, v, _| a == v)]
#[case("NE", |a, v, _| a != v)]
#[case("LT", |a, v, _| a < v)]
#[case("LE", |a, v, _| a <= v)]
#[case("GT", |a, v, _| a > v)]
#[case("GE", |a, v, _| a >= v)]
#[case("MASKED_EQ", |a, v, w| a & v == w)]
fn operators_compare_all_64_bits(#[case] op: &str, #[case] holds: fn(u64, u64, u64) -> bool) {
    for value in EDGES {
        for two in [0, 8, 0x1_0000_0000] {
            let code = with_args(&format!(r#"{{"index": 2, "value": {value}, "valueTwo": {two}, "op": "SCMP_CMP_{op}"}}"#));
            for arg in EDGES {
                let expected = if holds(arg, value, two) { ALLOW } else { EPERM };
                assert_eq!(ask(&code, Abi::X86_64, "read", &[9, 9, arg]), expected, "{arg:#x} {op} {value:#x} {two:#x}");
            }
        }
    }
}

#[test]
fn different_arguments_must_all_fit_and_the_same_one_any() {
    let eq = |index: u32, value: u64| format!(r#"{{"index": {index}, "value": {value}, "op": "SCMP_CMP_EQ"}}"#);
    let both = with_args(&[eq(0, 1), eq(1, 2)].join(","));
    let either = with_args(&[eq(0, 1), eq(0, 2)].join(","));
    let answers = |code: &[Insn]| [[1, 2], [1, 3], [2, 2], [3, 3]].map(|args| ask(code, Abi::X86_64, "read", &args) == ALLOW);
    assert_eq!(answers(&both), [true, false, false, false]);
    assert_eq!(answers(&either), [true, true, true, false]);
}

#[test]
fn the_oci_form_with_errno_and_unknown_names() {
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["chmod", "not_a_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}, {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    let program = program(json, Abi::X86_64, 0);
    assert_eq!(ask(&program, Abi::X86_64, "chmod", &[]), 0x0005_0005);
    assert_eq!(ask(&program, Abi::X86, "chmod", &[]), 0x0005_0005);
    assert_eq!(ask(&program, Abi::X86, "kill", &[]), KILL);
    assert_eq!(ask(&program, Abi::X86_64, "read", &[]), ALLOW);
    assert_eq!(run(&program, Abi::X86_64.audit(), 9999, &[]), ALLOW);
    assert_eq!(ask(&program, Abi::X32, "read", &[]), ALLOW, "not among its architectures: the default");
}

#[rstest]
#[case(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "listenerPath")]
#[case(r#"{"defaultAction": "SCMP_ACT_TRACE"}"#, "tracer")]
#[case(r#"{"defaultAction": "NO"}"#, "unknown action NO")]
#[case(r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["F"]}"#, "flag F")]
#[case(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#, "argument 6")]
#[case(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "X"}]}]}"#, "operator X")]
fn refusals_say_why(#[case] json: &str, #[case] words: &str) {
    let error = Profile::parse(json.as_bytes(), "test").unwrap().policy(machine(Abi::X86_64), 0).unwrap_err();
    assert!(error.message.contains(words), "{error}");
}

#[test]
fn a_localhost_profile_stays_in_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let filters = Filters::new(dir.path().into(), None).unwrap();
    let get = |file| filters.get(&SeccompNeed::Localhost { file, capabilities: 0 });
    assert!(!get("mine.json").unwrap().program.is_empty());
    assert!(get("../mine.json").unwrap_err().message.contains("'..'"));
    assert!(get("other.json").unwrap_err().message.contains("cannot load seccomp profile"));
}
