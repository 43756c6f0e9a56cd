//! The linear layers of DeepSeek's models, as numbers.

/// Sizes [out, in] of matrices, and how many there are of each.
pub type Shapes = Vec<[f64; 3]>;

/// Of a model like Llama: width, feed-forward width, layers, width of keys and values.
pub fn llama([d, f, layers, k]: [f64; 4]) -> Shapes {
    vec![[d, d, 2. * layers], [k, d, 2. * layers], [f, d, 3. * layers]]
}

/// Of DeepSeek-V2-Lite: latent attention, one dense layer, the shared experts (two, in
/// one) and 64 others in each of 26 layers.
pub fn v2_lite() -> Shapes {
    let latent = [[3072., 2048.], [576., 2048.], [4096., 512.], [2048., 2048.]];
    let latent = latent.map(|[out, input]| [out, input, 27.]);
    let fed = [[10944., 3.], [2816., 78.], [1408., 64. * 78.]];
    let fed = fed.map(|[f, count]| [f, 2048., count]);
    latent.into_iter().chain(fed).collect()
}

/// How many numbers are in the matrices.
pub fn weights(shapes: &[[f64; 3]]) -> f64 {
    shapes.iter().map(|[out, input, count]| count * out * input).sum()
}

/// How many are in adapters of rank `r` beside all of them.
pub fn adapters(shapes: &[[f64; 3]], r: f64) -> f64 {
    shapes.iter().map(|[out, input, count]| count * r * (out + input)).sum()
}
