"""The export: does a graph take a past and return it grown, with the right numbers? `judge.judge_export` answers.

It opens the files (`loading`), reads what the graph declares (`declared`), tries which sizes it takes (`sizes`), and then
runs it on tokens of its own (`probe`): is the present the past with the new positions behind it (`appended`), do cached
steps give what the uncached run gives (`driven`, and if not, why: `causes`), is each row as if it were alone (`rows`),
and is it the model that it should be (`reference`)?
"""
