"""A page on which samplers are looked at: `hf-maskdiff demo`.

- `samplers`: which samplers the page lists, and which settings each of them has;
- `history`, `heat_map`, `frames`, `token_text`, `captions`: what is shown of a run (pure functions, without Gradio);
- `stepwise`, `passes`: a call of a pipeline that runs one step at a time, and how often it runs the model;
- `editing`: from a painting to the codes that are drawn anew;
- `opening`, `image_runs`, `text_runs`: the pipelines, and the runs of one user on them;
- `controls`, `image_tab`, `text_tab`, `page`: the page itself, the only files that import Gradio.
"""
