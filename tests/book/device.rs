//! Why there is no CUDA: each way by facts made up, and those that a driver's library
//! can show by one made up. Which device a name means. Out of memory, by its words.
use crate::common::refused;
use downhill::device::{Facts, Library, Problem, is_out_of_memory, pick};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// A machine on which all is well.
fn fine() -> Facts {
    Facts {
        visible: None,
        module: true,
        driver: Library::Loaded(13_000),
        init: 0,
        devices: (2, 0),
        libtorch: (PathBuf::from("/opt/torch/lib"), "2.11.0+cu130".into()),
        cuda_half: Library::Loaded(2),
    }
}

fn said<T>(why: &str) -> Library<T> {
    Library::Refused(why.into())
}

#[test]
fn each_way_to_fail_has_its_words_and_its_fix() {
    assert_eq!(fine().problem(), None);
    let lacks = "libcublas.so.13: cannot open shared object file: No such file or \
                 directory";
    let cases: [(&str, Facts, &[&str]); 16] = [
        (
            "no driver",
            Facts { module: false, driver: said("libcuda.so.1: …"), ..fine() },
            &["no NVIDIA driver", "driver 580"],
        ),
        (
            "no library",
            Facts { driver: said("libcuda.so.1: gone"), ..fine() },
            &["kernel module is loaded", "libcuda.so.1: gone", "--gpus all"],
        ),
        (
            "too old",
            Facts { driver: Library::Loaded(12_080), ..fine() },
            &["CUDA 12.8", "needs 13.0", "driver 580"],
        ),
        (
            "hidden",
            Facts { visible: Some(String::new()), ..fine() },
            &["CUDA_VISIBLE_DEVICES is ``", "unset"],
        ),
        (
            "hidden by a number",
            Facts { visible: Some("-1".into()), ..fine() },
            &["CUDA_VISIBLE_DEVICES is `-1`"],
        ),
        (
            "no device",
            Facts { init: 100, ..fine() },
            &["no device", "nvidia-smi -L"],
        ),
        (
            "no such device",
            Facts { visible: Some("7".into()), devices: (0, 0), ..fine() },
            &["CUDA_VISIBLE_DEVICES=7"],
        ),
        ("two halves", Facts { init: 803, ..fine() }, &["803", "reboot"]),
        ("no right", Facts { init: 304, ..fine() }, &["304", "/dev/nvidia"]),
        (
            "busy",
            Facts { devices: (1, 46), ..fine() },
            &["another process", "nvidia-smi"],
        ),
        ("full", Facts { devices: (1, 2), ..fine() }, &["memory is full"]),
        (
            "another libtorch",
            Facts { libtorch: ("/x/lib".into(), "2.9.1".into()), ..fine() },
            &["/x/lib is 2.9.1", "2.11.0", "setup --cuda"],
        ),
        (
            "no CUDA half",
            Facts { cuda_half: Library::Absent, ..fine() },
            &["no libtorch_cuda.so in /opt/torch/lib", "setup --cuda"],
        ),
        (
            "a library of it is missing",
            Facts { cuda_half: said(lacks), ..fine() },
            &["needs libcublas.so.13", "setup --cuda"],
        ),
        (
            "of another build",
            Facts { cuda_half: said("x.so: undefined symbol: _Z"), ..fine() },
            &["undefined symbol: _Z", "same build", "setup --cuda"],
        ),
        (
            "not seen",
            Facts { cuda_half: Library::Loaded(0), ..fine() },
            &["libtorch none", "nvidia-smi"],
        ),
    ];
    let mut texts = std::collections::BTreeSet::new();
    for (name, facts, parts) in cases {
        let text = facts.problem().expect(name).to_string();
        for part in parts {
            assert!(text.contains(part), "{name}: no `{part}` in: {text}");
        }
        assert!(texts.insert(text), "{name}: said twice");
    }
    // What comes first is said first: the fix of the second would not help.
    let old = Facts { driver: Library::Loaded(11_040), devices: (0, 0), ..fine() };
    assert_eq!(old.problem(), Some(Problem::DriverTooOld(11_040)));
    // A folder that does not say its version is taken as it is.
    let unknown = Facts { libtorch: ("/x".into(), String::new()), ..fine() };
    assert_eq!(unknown.problem(), None);
}

#[test]
fn a_device_by_its_name() {
    let two = || Ok(2);
    let none = || Err("no driver, install one".to_string());
    assert_eq!(pick("cpu", &none).unwrap(), Device::Cpu);
    assert_eq!(pick("auto", &none).unwrap(), Device::Cpu);
    assert_eq!(pick("auto", &two).unwrap(), Device::Cuda(0));
    assert_eq!(pick("cuda", &two).unwrap(), Device::Cuda(0));
    assert_eq!(pick("cuda:1", &two).unwrap(), Device::Cuda(1));
    refused(pick("cuda:2", &two), &["cuda:2", "2 CUDA devices", "cuda:0 to cuda:1"]);
    refused(pick("cuda:1", &|| Ok(1)), &["one CUDA device, cuda:0"]);
    refused(pick("cuda:0", &none), &["--device", "cuda:0", "install one"]);
    for wrong in ["cuda:", "cuda:-1", "cuda:x", "gpu", "CUDA", "cuda:0.5", ""] {
        refused(pick(wrong, &two), &["--device", "auto, cpu, cuda, cuda:N"]);
    }
}

/// The command beside a `libcuda.so.1` that answers as told: all of it but libtorch's
/// CUDA half, which needs a real one.
#[cfg(target_os = "linux")]
#[test]
fn a_drivers_answers_reach_the_user() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("driver.c");
    std::fs::write(&source, DRIVER).unwrap();
    let library = dir.path().join("libcuda.so.1");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(cc.status().unwrap().success());
    let doctor = |answers: &[(&str, &str)]| device_line(dir.path(), answers);
    let old = doctor(&[("FAKE_VERSION", "12040")]);
    assert!(old.contains("CUDA 12.4"), "{old}");
    let none = doctor(&[("FAKE_DEVICES", "0")]);
    assert!(none.contains("no device"), "{none}");
    let broken = doctor(&[("FAKE_INIT", "803")]);
    assert!(broken.contains("reboot"), "{broken}");
    let busy = doctor(&[("FAKE_CONTEXT", "46")]);
    assert!(busy.contains("another process"), "{busy}");
    let full = doctor(&[("FAKE_CONTEXT", "2")]);
    assert!(full.contains("memory is full"), "{full}");
    let hidden = doctor(&[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(hidden.contains("hides every device"), "{hidden}");
    // The driver is content: libtorch is next, whose CUDA half meets no real device.
    let content = doctor(&[]);
    assert!(content.contains("libtorch"), "{content}");
}

fn device_line(dir: &Path, answers: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_downhill"));
    command.arg("doctor").env("LD_LIBRARY_PATH", dir);
    command.env_remove("CUDA_VISIBLE_DEVICES").envs(answers.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|l| l.starts_with("device")).expect("a line");
    assert!(line.contains("CPU, not CUDA: "), "{line}");
    line.into()
}

const DRIVER: &str = r#"
#include <stdlib.h>
static int told(const char *name, int usual) {
  const char *text = getenv(name);
  return text ? atoi(text) : usual;
}
int cuInit(unsigned flags) { return told("FAKE_INIT", 0); }
int cuDriverGetVersion(int *v) { *v = told("FAKE_VERSION", 13000); return 0; }
int cuDeviceGetCount(int *n) { *n = told("FAKE_DEVICES", 1); return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) {
  *c = 0;
  return told("FAKE_CONTEXT", 0);
}
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxPushCurrent_v2(void *c) { return 0; }
int cuCtxPopCurrent_v2(void **c) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 5; *t = 7; return 0; }
"#;

#[test]
fn out_of_memory_is_known_by_its_words() {
    // libtorch's own, here.
    let real = Tensor::f_zeros([1 << 50], (Kind::Float, Device::Cpu)).unwrap_err();
    assert!(is_out_of_memory(&real.to_string()), "{real}");
    for text in [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "std::bad_alloc",
    ] {
        assert!(is_out_of_memory(text), "{text}");
    }
    let other = "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)";
    assert!(!is_out_of_memory(other));
}
