"""What a quantized decoder is measured on: text of several kinds, written for this, and chats with an answer begun.

The fault of a quantization depends on what is read: names and numbers are settled by a few large logits, prose by many
small ones. The texts are no benchmark's, so that no model has learnt them by heart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PASSAGES = (
    (
        "The ferry to the island leaves at seven, unless there is fog, and in March there is nearly always fog. Marta had been "
        "told this by the man at the ticket window, by the woman who sold her coffee, and by her own brother, who had lived on "
        "the coast for eleven years and no longer believed in timetables. She sat down on the wooden bench all the same, put "
        "her suitcase between her feet, and opened the letter again. It was short. Her aunt wrote the way she spoke, without a "
        "greeting, as if the conversation had only been interrupted: the roof has to be mended before the summer, the dog is "
        "well, and you should come, because there is something in the workshop that I would rather show you than describe."
    ),
    (
        "def moving_average(values: list[float], width: int) -> list[float]:\n"
        '    """Mean of every window of `width` neighbours; shorter than the input by width - 1."""\n'
        "    if width < 1:\n"
        '        raise ValueError(f"width must be positive, not {width}")\n'
        "    total = sum(values[:width])\n"
        "    means = [total / width]\n"
        "    for leaving, entering in zip(values, values[width:]):\n"
        "        total += entering - leaving\n"
        "        means.append(total / width)\n"
        "    return means\n\n\n"
        'if __name__ == "__main__":\n'
        "    for width in (1, 2, 5):\n"
        "        print(width, moving_average([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], width))\n"
    ),
    (
        "Der Zug hielt auf freier Strecke. Niemand wusste warum, und nach zehn Minuten fragte auch niemand mehr. Draußen lag "
        "Schnee auf den Feldern. — Le marché ouvre à huit heures; on y trouve du pain, des légumes et, le samedi, des fleurs. "
        "— La biblioteca está cerrada los lunes, pero se puede devolver un libro por la ventana de la entrada. — 图书馆星期一"
        "不开门，但是可以在门口还书。"
    ),
    (
        "Packing list for three days in the mountains\n\n"
        "1. Boots, worn in, and two pairs of wool socks\n2. Rain jacket and a warm layer\n3. Water: two litres for each person\n"
        "4. Bread, cheese, apples, chocolate\n5. Map (1:25,000) and compass; the telephone has no signal behind the pass\n"
        "6. First aid kit: plasters, bandage, painkillers\n7. Torch with spare batteries\n\nBefore leaving:\n"
        "- tell the hut how many people are coming\n- check the weather at 6 pm and again at 6 am\n- leave the route with a "
        "friend\n- lock the bicycle\n"
    ),
    (
        '"Did you feed the cat?" asked Ines.\n"Which cat?" said Paul from behind the newspaper.\n"We have only one."\n"Then '
        'who," he said, lowering the paper by an inch, "ate the fish this morning? Ours was asleep on the piano."\nInes went '
        'to the window. A grey tail was just disappearing over the garden wall.\n"Paul," she said slowly, "I think we had '
        'better buy more fish."\n"Or a higher wall."\n"Or a higher wall," she agreed, and put the kettle on. "But first you '
        'are going to tell me why the piano lid was open."'
    ),
    (
        "date,station,min_c,max_c,rain_mm\n2024-02-01,Harbour,1.4,6.9,0.0\n2024-02-02,Harbour,2.2,7.1,3.4\n"
        "2024-02-03,Harbour,-0.8,4.5,0.2\n2024-02-04,Harbour,-2.1,3.0,0.0\n2024-02-05,Harbour,0.3,5.8,11.7\n\n"
        "The five days had 15.3 mm of rain, most of it on the last one. The lowest temperature was -2.1 and the highest 7.1 "
        "degrees, a range of 9.2. If 1 mm of rain on 1 square metre is 1 litre, a roof of 80 square metres collected 80 * 15.3 "
        "= 1,224 litres, which is 61 percent of a tank of 2,000 litres."
    ),
    (
        '{"order": 70413, "customer": {"name": "A. Lindqvist", "country": "SE"}, "items": [{"sku": "LAMP-02", "quantity": 2, '
        '"price": 39.5}, {"sku": "CABLE-5M", "quantity": 1, "price": 12.0}], "shipping": {"method": "post", "tracked": true, '
        '"address": {"street": "Storgatan 8", "city": "Lund", "postcode": "223 53"}}, "total": 91.0, "paid": false}\n\n'
        "SELECT customer, SUM(quantity * price) AS total FROM orders JOIN items USING (order_id) WHERE paid = FALSE GROUP BY "
        "customer HAVING total > 50 ORDER BY total DESC LIMIT 10;"
    ),
    (
        "A cell divides when it has copied everything it needs. First the long molecules that carry its plan are doubled, "
        "strand by strand, and the two copies stay attached to each other. Then fibres grow from two opposite ends, take hold of "
        "the copies, and pull them apart, so that each half of the cell receives one of each. Errors are rare, because several "
        "checks have to be passed on the way: if a copy is damaged, or a fibre has not taken hold, the process waits. Most "
        "drugs against cancer work by disturbing exactly this waiting, and that is why they harm healthy tissue that divides "
        "often, such as skin and the lining of the gut."
    ),
    (
        "Поезд опоздал на час, и все вышли на перрон пить чай. — 雨が降っていたので、駅まで歩かずにバスに乗りました。 — وصلت الرسالة "
        "بعد أسبوع، ولم يكن فيها سوى صورة قديمة. — बाज़ार सुबह आठ बजे खुलता है।"
    ),
)

# Messages, and how the answer begins.
CONVERSATIONS: tuple[tuple[Sequence[Mapping[str, str]], str], ...] = (
    (
        [
            {
                "role": "user",
                "content": "The code for the red door is 4821. The code for the blue door is 1177. The code for the old "
                "gate is 90652. What is the code for the blue door?",
            }
        ],
        "1177",
    ),
    (
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is 17 + 25?"},
            {"role": "assistant", "content": "42"},
            {"role": "user", "content": "Repeat after me: the quick brown fox"},
        ],
        "the quick brown fox",
    ),
    (
        [
            {
                "role": "user",
                "content": "Name three things that float on water, and say in one sentence each why they do.",
            }
        ],
        (
            "1. A cork floats because it is full of tiny pockets of air and so weighs less than the water it pushes aside.\n"
            "2. An iceberg floats because water grows by a tenth when it freezes.\n3. A steel ship floats because its hull "
            "encloses far more space than its steel would fill."
        ),
    ),
    (
        [
            {"role": "user", "content": "Count from 7 to 12."},
            {"role": "assistant", "content": "7, 8, 9, 10, 11, 12"},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris"},
            {"role": "user", "content": "Thanks! And how do I write a loop over those numbers in Python?"},
        ],
        "Use `range`, whose end is not included:\n\n```python\nfor number in range(7, 13):\n    print(number)\n```\n",
    ),
)
