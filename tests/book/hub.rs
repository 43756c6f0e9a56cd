//! Names on the hub: from a cache folder as huggingface_hub lays it out, and from a
//! hub that is a few lines of this file.
use crate::common::refused;
use downhill::hub::{Hub, name_of};
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with one checkpoint: blobs, and links to them in a snapshot.
fn cache(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
    let repo = dir.join("models--deepseek-ai--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [&snapshot, &repo.join("refs"), &repo.join("blobs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (i, (name, text)) in files.iter().enumerate() {
        let blob = repo.join(format!("blobs/{i}"));
        fs::write(&blob, text).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), snapshot.join(name))
            .unwrap();
    }
    snapshot
}

fn hub(cache: &Path) -> Hub {
    let cache = cache.to_path_buf();
    Hub { cache, offline: true, endpoint: None, token: None }
}

fn ask(hub: &Hub, model: &str) -> downhill::Result<PathBuf> {
    hub.resolve(Path::new(model), &mut |_| ())
}

#[test]
fn a_cached_checkpoint_is_found_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", "{}"), ("model.safetensors", "weights")];
    let snapshot = cache(dir.path(), &files);
    let hub = hub(dir.path());
    for name in [
        "deepseek-ai/tiny",
        "deepseek-ai/tiny@main",
        &format!("deepseek-ai/tiny@{COMMIT}"),
    ] {
        assert_eq!(ask(&hub, name).unwrap(), snapshot, "{name}");
    }
    // What an adapter trained on it says of its base.
    assert_eq!(name_of(&snapshot), "deepseek-ai/tiny");
    assert_eq!(name_of(Path::new("a/models--b--c")), "a/models--b--c");
    assert_eq!(name_of(Path::new("here")), "here");
    // A folder is a folder, whatever it is called.
    let folder = dir.path().to_str().unwrap();
    assert_eq!(ask(&hub, folder).unwrap(), dir.path());
}

#[test]
fn an_incomplete_copy_is_none() {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "config.json"),
        (&[("config.json", "{}")], "no model.safetensors"),
        (
            &[
                ("config.json", "{}"),
                ("model.safetensors.index.json", index),
                ("model-1.safetensors", ""),
            ],
            "no model-2.safetensors",
        ),
        (
            &[("config.json", "{}"), ("model.safetensors.index.json", "{")],
            "its index",
        ),
        (
            &[("config.json", "{}"), ("pytorch_model.bin", "")],
            "no model.safetensors",
        ),
    ];
    for (files, part) in cases {
        let dir = tempfile::tempdir().unwrap();
        cache(dir.path(), files);
        let parts = [part, "HF_HUB_OFFLINE", "--local-dir", "--model DIR"];
        refused(ask(&hub(dir.path()), "deepseek-ai/tiny"), &parts);
    }
    // A link whose blob is not there yet.
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", "{}"), ("model.safetensors", "weights")];
    cache(dir.path(), &files);
    fs::remove_file(dir.path().join("models--deepseek-ai--tiny/blobs/1")).unwrap();
    refused(ask(&hub(dir.path()), "deepseek-ai/tiny"), &["model.safetensors"]);
}

#[test]
fn what_is_neither_folder_nor_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", "{}"), ("model.safetensors", "weights")];
    cache(dir.path(), &files);
    let hub = hub(dir.path());
    for text in [
        "nowhere",
        "a/b/c",
        "/etc/nowhere",
        "../nowhere",
        "./nowhere/x",
        "a/../b",
        "deepseek-ai/",
        "deepseek-ai/ti ny",
        "deepseek-ai/tiny@../../x",
        "deepseek-ai/tiny@",
        "",
    ] {
        refused(ask(&hub, text), &["--model", "no such folder", "owner/name"]);
    }
    for text in ["deepseek-ai/tiny@v2", "deepseek-ai/other", "deepseek-ai/tiny@refs"]
    {
        refused(ask(&hub, text), &["--model", text, "HF_HUB_OFFLINE"]);
    }
}

#[test]
fn the_command_reads_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let hubs = dir.path().join("home/hub");
    let snapshot = cache(&hubs, &[]);
    crate::common::write_checkpoint(&snapshot, 1);
    let doctor = |name: &str, value: &Path, model: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_downhill"));
        for unset in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"] {
            c.env_remove(unset);
        }
        c.env("HF_HOME", "/nowhere").env("HF_HUB_OFFLINE", "1").env(name, value);
        c.args(["doctor", "--model", model]).output().unwrap()
    };
    for (name, value) in
        [("HF_HOME", dir.path().join("home")), ("HF_HUB_CACHE", hubs)]
    {
        let output = doctor(name, &value, "deepseek-ai/tiny");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.contains(COMMIT) && text.contains("llama"), "{text}");
        let output = doctor(name, &value, "deepseek-ai/other");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("HF_HUB_OFFLINE"),
            "{text}"
        );
    }
}

/// Answers as the hub does: what is in a repository, and its files, in parts if asked.
struct Served {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

fn serve(files: HashMap<String, Vec<u8>>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(vec![]));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &files, &log);
        }
    });
    Served { address, asked }
}

fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    log: &Mutex<Vec<String>>,
) {
    let mut lines =
        BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or("").to_string();
    let mut range = String::new();
    for line in lines.by_ref().take_while(|l| !l.is_empty()) {
        if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
            range = value.to_string();
        }
    }
    log.lock().unwrap().push(format!("{path} {range}"));
    let name = path.rsplit('/').next().unwrap_or("").to_string();
    let (status, headers, body) = if path.starts_with("/api/models/deepseek-ai/tiny")
    {
        let list: Vec<_> = files.keys().map(|f| json!({"rfilename": f})).collect();
        let body = json!({"sha": COMMIT, "siblings": list}).to_string();
        ("200 OK", String::new(), body.into_bytes())
    } else if let Some(bytes) = files.get(&name) {
        let range = range.strip_prefix("bytes=").unwrap_or("0-");
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end =
            end.parse().map_or(bytes.len(), |end: usize| end + 1).min(bytes.len());
        let headers = format!(
            "Content-Range: bytes {start}-{}/{}\r\nX-Repo-Commit: {COMMIT}\r\n\
             ETag: \"{name}\"\r\n",
            end.saturating_sub(1),
            bytes.len()
        );
        ("206 Partial Content", headers, bytes[start..end].to_vec())
    } else {
        ("404 Not Found", String::new(), b"no".to_vec())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn what_is_not_cached_is_downloaded_once() {
    let source = tempfile::tempdir().unwrap();
    crate::common::write_checkpoint(source.path(), 3);
    let mut files: HashMap<String, Vec<u8>> = fs::read_dir(source.path())
        .unwrap()
        .flatten()
        .map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap()))
        .collect();
    files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
    let weights = files["model.safetensors"].clone();
    let served = serve(files);
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Some(served.address.clone());
    let hub = Hub { offline: false, endpoint, ..hub(dir.path()) };
    // A download that was cut off after 1000 bytes.
    let blobs = dir.path().join("models--deepseek-ai--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    // hf-hub puts `part` for what follows the last dot of the ETag.
    fs::write(blobs.join("model.part"), &weights[..1000]).unwrap();
    let mut said = vec![];
    let found = hub.resolve(Path::new("deepseek-ai/tiny"), &mut |line| {
        said.push(line.to_string())
    });
    let found = found.unwrap();
    assert!(said.len() == 1 && said[0].contains("downloading"), "{said:?}");
    assert_eq!(fs::read(found.join("model.safetensors")).unwrap(), weights);
    assert!(!found.join("pytorch_model.bin").exists());
    let asked = served.asked.lock().unwrap().clone();
    assert!(
        asked.iter().any(|a| a.ends_with("bytes=1000-")),
        "not resumed: {asked:?}"
    );
    // The second time nobody is asked.
    let again =
        ask(&Hub { offline: true, ..hub.clone() }, "deepseek-ai/tiny").unwrap();
    assert_eq!(again, found);
    ask(&hub, "deepseek-ai/tiny").unwrap();
    assert_eq!(served.asked.lock().unwrap().len(), asked.len());
    // A name that is not there, and a hub that is not.
    refused(
        ask(&hub, "deepseek-ai/none"),
        &["could not be downloaded", "404", "DIR"],
    );
    let nobody = Hub { endpoint: Some("http://127.0.0.1:9".into()), ..hub };
    let parts = ["deepseek-ai/none", "could not be downloaded", "--model DIR"];
    refused(ask(&nobody, "deepseek-ai/none"), &parts);
}

#[test]
fn a_hub_checkpoint_of_pickles_alone_is_refused() {
    let files = ["config.json", "pytorch_model-00001-of-00002.bin"];
    let served = serve(files.map(|f| (f.to_string(), b"{}".to_vec())).into());
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Some(served.address.clone());
    let hub = Hub { offline: false, endpoint, ..hub(dir.path()) };
    let parts = ["pickle", "executes", "save_pretrained", "deepseek-ai/tiny"];
    refused(ask(&hub, "deepseek-ai/tiny"), &parts);
}

/// As Python's `expanduser` and `expandvars`; the values are huggingface_hub 1.33's.
#[test]
fn the_cache_is_where_huggingface_hub_has_it() {
    let cache = |vars: &[(&str, &str)]| {
        let var = |name: &str| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_string())
        };
        Hub::from(&var).cache
    };
    let home = ("HOME", "/h");
    for (vars, expected) in [
        (vec![home], "/h/.cache/huggingface/hub"),
        (vec![home, ("HF_HOME", "~/hf")], "/h/hf/hub"),
        (vec![home, ("HF_HOME", "~")], "/h/hub"),
        (vec![home, ("HF_HOME", "~root/hf")], "/root/hf/hub"),
        (vec![home, ("X", "/x"), ("HF_HOME", "$X/hf")], "/x/hf/hub"),
        (vec![home, ("X", "/x"), ("HF_HOME", "${X}hf")], "/xhf/hub"),
        (vec![home, ("HF_HOME", "/a$NONE/b")], "/a$NONE/b/hub"),
        (vec![home, ("HF_HOME", "/a$/b${c")], "/a$/b${c/hub"),
        (vec![home, ("XDG_CACHE_HOME", "~/c")], "/h/c/huggingface/hub"),
        (vec![home, ("HF_HUB_CACHE", "~/c")], "/h/c"),
        (vec![home, ("HUGGINGFACE_HUB_CACHE", "$HOME/d")], "/h/d"),
        (vec![home, ("HUGGINGFACE_HUB_CACHE", "/d"), ("HF_HUB_CACHE", "/c")], "/c"),
        (vec![home, ("HF_HOME", "/e"), ("XDG_CACHE_HOME", "/x")], "/e/hub"),
        (vec![home, ("HF_HOME", "a/~/b")], "a/~/b/hub"),
    ] {
        assert_eq!(cache(&vars), PathBuf::from(expected), "{vars:?}");
    }
    // Nobody's home: nothing is made under `./~`.
    let vars = [("HF_HOME", "~nobody-of-this-name/hf"), ("HF_HUB_OFFLINE", "0")];
    let var = |name: &str| {
        let found = vars.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value.to_string())
    };
    refused(
        ask(&Hub::from(&var), "deepseek-ai/tiny"),
        &["~nobody", "write the path"],
    );
}

#[test]
fn revisions_may_have_slashes() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("config.json", "{}"), ("model.safetensors", "weights")];
    let snapshot = cache(dir.path(), &files);
    let refs = dir.path().join("models--deepseek-ai--tiny/refs");
    fs::create_dir_all(refs.join("refs/pr")).unwrap();
    fs::write(refs.join("refs/pr/1"), COMMIT).unwrap();
    let hub = hub(dir.path());
    assert_eq!(ask(&hub, "deepseek-ai/tiny@refs/pr/1").unwrap(), snapshot);
    refused(ask(&hub, "deepseek-ai/tiny@refs/pr/2"), &["refs/pr/2"]);
    refused(ask(&hub, "deepseek-ai/tiny@refs/../main"), &["no such folder"]);
}

#[test]
fn a_file_means_its_folder_and_an_adapter_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path());
    let at = |name: &str| dir.path().join(name);
    for name in ["config.json", "model.safetensors", "notes.txt"] {
        fs::write(at(name), "{}").unwrap();
    }
    for name in ["config.json", "model.safetensors"] {
        let found = ask(&hub, at(name).to_str().unwrap()).unwrap();
        assert_eq!(found, dir.path());
    }
    refused(ask(&hub, at("notes.txt").to_str().unwrap()), &["is a file"]);
    fs::remove_file(at("model.safetensors")).unwrap();
    let config = json!({"base_model_name_or_path": "acme/base"}).to_string();
    fs::write(at("adapter_config.json"), config).unwrap();
    let parts = ["is an adapter", "--adapter", "--model: acme/base"];
    refused(ask(&hub, dir.path().to_str().unwrap()), &parts);
}
