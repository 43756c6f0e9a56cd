//! The shapes that are measured on a GPU are those of the published models.
use downhill::models::read_config;
use std::path::Path;

#[test]
fn shapes_have_the_published_numbers_of_parameters() {
    let bounds = std::fs::read("chapters/figures/bench_gpu.json").unwrap();
    let bounds: serde_json::Value = serde_json::from_slice(&bounds).unwrap();
    // By the model cards: 6.91, 1.78 and 15.7 billion.
    for (name, parameters) in [
        ("deepseek-7b", 6_910_365_696),
        ("r1-distill-qwen-1.5b", 1_777_088_000),
        ("v2-lite", 15_706_484_224_i128),
    ] {
        let dir = Path::new("benches/shapes").join(name);
        let config = read_config(&dir).expect(name);
        assert_eq!(config.parameters().unwrap(), parameters, "{name}");
        // What the page's bounds count: all but embedding, head, norms and routers.
        let key = name.replace('.', "_");
        let counted = bounds["bounds"][&key]["linear_weights"].as_i64().unwrap();
        let ends = 2 * config.vocab_size * config.hidden_size;
        let left = parameters - i128::from(counted + ends);
        assert!((0..parameters / 1000).contains(&left), "{name}: {left}");
    }
}

#[test]
fn what_auto_counts_grows_with_tokens_and_shape() {
    let read = |name: &str| read_config(&Path::new("benches/shapes").join(name));
    let bytes = |name: &str, tokens| {
        let kind = tch::Kind::BFloat16;
        read(name).unwrap().activation_bytes(tokens, kind)
    };
    assert_eq!(bytes("tiny", 0), 0);
    assert_eq!(bytes("deepseek-7b", 2 * 2048), 2 * bytes("deepseek-7b", 2048));
    assert!(bytes("tiny", 512) < bytes("r1-distill-qwen-1.5b", 512));
    // Not more than the whole of a large card for a batch that fits into it.
    assert!((5 << 30..60 << 30).contains(&bytes("deepseek-7b", 2048)));
}
