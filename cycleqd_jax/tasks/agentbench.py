"""Fixed prompts of AgentBench (THUDM/AgentBench, Apache-2.0), verbatim: what its published results were measured with."""

from __future__ import annotations

from cycleqd_jax.types import Message

__all__ = ["DBBENCH_PREFIX", "OS_LEAD", "OS_PREFIX"]

_DBBENCH = """
I will ask you a question, then you should help me operate a MySQL database with SQL to answer the question.
You have to explain the problem and your solution to me and write down your thoughts.
After thinking and explaining thoroughly, every round you can choose to operate or to answer.
your operation should be like this:
Action: Operation
```sql
SELECT * FROM table WHERE condition;
```
You MUST put SQL in markdown format without any other comments. Your SQL should be in one line.
Every time you can only execute one SQL statement. I will only execute the statement in the first SQL code block. \
Every time you write a SQL, I will execute it for you and give you the output.
If you are done operating, and you want to commit your final answer, then write down:
Action: Answer
Final Answer: ["ANSWER1", "ANSWER2", ...]
DO NOT write this pattern unless you are sure about your answer. I expect an accurate and correct answer.
Your answer should be accurate. Your answer must be exactly the same as the correct answer.
If the question is about modifying the database, then after done operation, your answer field can be anything.
If your response cannot match any pattern I mentioned earlier, you will be judged as FAIL immediately.
Your input will be raw MySQL response, you have to deal with it by yourself.
"""

DBBENCH_PREFIX: tuple[Message, ...] = (
    {"role": "user", "content": _DBBENCH},
    {"role": "assistant", "content": "Ok."},
)
"""Before each DBBench problem."""

_OS = """\
You are an assistant that will act like a person, I'will play the role of linux(ubuntu) operating system. \
Your goal is to implement the operations required by me or answer to the question proposed by me. \
For each of your turn, you should first think what you should do, and then take exact one of the three actions: \
"bash", "finish" or "answer".\x20

1. If you think you should execute some bash code, take bash action, and you should print like this:

Think: put your thought here.

Act: bash

```bash
# put your bash code here
```

2. If you think you have finished the task, take finish action, and you should print like this:

Think: put your thought here.

Act: finish

3. If you think you have got the answer to the question, take answer action, and you should print like this:

Think: put your thought here.

Act: answer(Your answer to the question should be put in this pair of parentheses)

If the output is too long, I will truncate it. The truncated output is not complete. \
You have to deal with the truncating problem by yourself. Attention, your bash code should not contain any input operation. \
Once again, you should take only exact one of the three actions in each turn.

Now, my problem is:

tell me how many files are in the directory "/etc"?"""

OS_PREFIX: tuple[Message, ...] = (
    {"role": "user", "content": _OS},
    {
        "role": "assistant",
        "content": "Think: To count the files in /etc, I need to print all the files in it.\n\n"
        "Act: bash\n\n```bash\nls /etc\n```",
    },
    {
        "role": "user",
        "content": "The output of the OS:\ncpi cron.hourly fuse.conf iproute2 lvm networkd-dispatcher protocols "
        "selinux tmpfiles.d [truncated because the output is too long]",
    },
    {
        "role": "assistant",
        "content": "Think: The output has been truncated because it is too long, "
        "so I need to count files by script directly.\n\nAct: bash\n\n```bash\nls -1 /etc | wc -l\n```",
    },
    {"role": "user", "content": "The output of the OS:\n220"},
    {"role": "assistant", "content": "Think: Now I get the answer, it is 220.\n\nAct: answer(220)"},
)
"""Before each OS interaction problem: the rules, and one problem solved."""

OS_LEAD = "Now, I will start a new problem in a new OS. My problem is:\n\n"
"""Before the description of an OS interaction problem."""
